import pytest

from steptool.check.memory import GIB, machine_of_profile, this_machine


@pytest.mark.parametrize(
    ("gpus", "gpu_type", "memory", "processes", "expected"),
    [
        (1, "A100", "64Gi", 1, 40 * GIB),
        (4, "H100", "", 4, 80 * GIB),
        (1, "", "64Gi", 1, None),  # any GPU
        (0, "", "16Gi", 1, 16 * GIB),
        (0, "", "16Gi", 2, 8 * GIB),
        (0, "", "512Mi", 1, GIB / 2),
        (0, "", "2G", 1, 2e9),
        (0, "", "", 1, None),
    ],
)
def test_a_process_gets_what_the_profile_says(
    gpus: int, gpu_type: str, memory: str, processes: int, expected: float | None
) -> None:
    machine = machine_of_profile(gpus, gpu_type, memory, processes)
    assert (machine.memory if machine else None) == expected
    assert machine is None or machine.has_gpu == bool(gpus)


def test_this_machine_has_some_memory() -> None:
    assert this_machine().memory > GIB / 4
