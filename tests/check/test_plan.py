"""The plan of a run, in words and numbers that follow from its configuration."""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from steptool.check.memory import GIB, detect_machine, read_machine, read_memory_limit
from steptool.check.plan import describe_plan, read_base_shape
from steptool.config import Config
from steptool.data.parsing import IngestError
from steptool.models.load import ModelError


def test_files_and_their_sizes_are_those_that_ingest_would_read(tmp_path: Path) -> None:
    for name, size in (("a.jsonl", 1_500_000), ("b.jsonl", 500_000), ("c.txt", 9_000_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    data = {"source": "jsonl", "paths": [str(tmp_path)], "train_queries": 5}
    (line, *_) = describe_plan(Config.model_validate({"data": data}))
    assert line.endswith("at most 5 training, 200 validation and 400 held-out queries from 2 files of 2.0 MB")
    with pytest.raises(IngestError, match="does not exist"):
        describe_plan(Config.model_validate({"data": {**data, "paths": ["/nowhere"]}}))


def test_rounds_say_how_many_tries_a_query_has() -> None:
    plan = {"rollout": {"episodes": 24, "shards": 3}, "ppo": {"rounds": 2, "batch_size": 10, "epochs": 2}}
    assert "rounds      2 rounds of 24 episodes in 3 shards; 6 updates a round, 12 in all" in describe_plan(
        Config.model_validate(plan)
    )
    plan["rollout"]["samples_per_query"] = 4
    assert any(
        "24 episodes, 4 of each query, in 3 shards" in line for line in describe_plan(Config.model_validate(plan))
    )


@pytest.mark.parametrize(
    ("ppo", "credit", "stays"),
    [
        ({"rounds": 1}, {}, True),
        ({"rounds": 2}, {}, False),
        ({"rounds": 1, "value_warmup_rounds": 0}, {}, False),
        ({"rounds": 1, "algorithm": "grpo"}, {"whiten": False}, False),
        ({"rounds": 1}, {"value": "group_mean"}, False),
    ],
)
def test_a_run_in_which_the_model_does_not_learn_says_so(
    ppo: dict[str, Any], credit: dict[str, Any], stays: bool
) -> None:
    plan = {"ppo": ppo, "credit": credit, "rollout": {"samples_per_query": 4}}
    lines = describe_plan(Config.model_validate(plan))
    assert any("the model stays as it is: only the value head learns" in line for line in lines) is stays


def test_endpoints_are_listed_with_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m", "key_variable": "STEPTOOL_TEST_KEY"}
    config = Config.model_validate({"rewards": {"annotator": "judge", "judge": {"endpoint": endpoint}}})
    line = "endpoint    judge: m at http://localhost:1/v1; STEPTOOL_TEST_KEY is"
    assert describe_plan(config)[-1] == f"{line} not set, which suits a server without keys"
    monkeypatch.setenv("STEPTOOL_TEST_KEY", "secret")
    assert describe_plan(config)[-1] == f"{line} set"


@pytest.mark.parametrize("base", ["/no/such/model", "./model", "own er/model", "a/b/c"])
def test_a_base_that_is_neither_here_nor_a_name_of_the_hub_is_refused(base: str) -> None:
    with pytest.raises(ModelError):
        read_base_shape(Config.model_validate({"policy": {"base": base}}).policy)


@pytest.mark.parametrize("base", ["scratch", "s3://bucket/model"])
def test_a_model_that_is_not_here_has_no_shape(base: str) -> None:
    assert read_base_shape(Config.model_validate({"policy": {"base": base}}).policy) is None


@pytest.mark.parametrize(
    ("gpus", "gpu_type", "memory", "processes", "expected"),
    [
        (1, "A100", "64Gi", 1, 40 * GIB),
        (4, "H100", "", 4, 80 * GIB),
        (1, "", "64Gi", 1, math.inf),  # any GPU
        (0, "", "16Gi", 1, 16 * GIB),
        (0, "", "16Gi", 2, 8 * GIB),
        (0, "", "512Mi", 1, GIB / 2),
        (0, "", "2G", 1, 2e9),
        (0, "", "", 1, math.inf),
    ],
)
def test_a_process_gets_what_the_profile_says(
    gpus: int, gpu_type: str, memory: str, processes: int, expected: float
) -> None:
    machine = read_machine(gpus, gpu_type, memory, processes)
    assert (machine.memory, machine.has_gpu, machine.disk) == (expected, bool(gpus), math.inf)
    # the processes of a pod share its disk, and each reads and writes what the others do
    assert read_machine(gpus, gpu_type, memory, processes, "20Gi").disk == 20 * GIB


def test_this_machine_has_some_memory_and_the_disk_of_its_temporary_folder() -> None:
    machine = detect_machine()
    assert machine.memory > GIB / 4
    assert 0 < machine.disk < shutil.disk_usage(tempfile.gettempdir()).total


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "8589934592\n"}, 8 * GIB),  # a container that sees its own group at the mount
        ("0::/pod/box\n", {"pod/memory.max": str(4 * GIB), "pod/box/memory.max": "max\n"}, 4 * GIB),
        ("0::/pod\n", {"pod/memory.max": str(6 * GIB), "memory.max": str(2 * GIB)}, 2 * GIB),
        ("0::/\n", {"memory.max": "max\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("9:cpu:/\n4:memory:/pod\n0::/\n", {"memory/memory.limit_in_bytes": str(3 * GIB)}, 3 * GIB),
        ("4:memory:/pod\n", {"memory/pod/memory.limit_in_bytes": "9223372036854771712\n"}, 2.0**63),
    ],
)
def test_a_limit_of_the_container_is_read(tmp_path: Path, groups: str, files: dict[str, str], expected: float) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    assert read_memory_limit(tmp_path / "groups", tmp_path / "mount") == pytest.approx(expected)


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert read_memory_limit(tmp_path / "missing", tmp_path) == math.inf
