"""What `make package` writes, and whether the images can run it."""

import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from flyteidl.admin.task_pb2 import TaskSpec
from flyteidl.core.tasks_pb2 import TaskTemplate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a cluster's profile."""
    folder = tmp_path_factory.mktemp("build")
    settings = (f"BIN={Path(sys.executable).parent}", f"BUILD={folder}")
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *settings, "package"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def tasks(built: Path) -> list[TaskTemplate]:
    with tarfile.open(built) as archive:
        files = [archive.extractfile(name) for name in archive.getnames() if name.endswith("_1.pb")]
        return [TaskSpec.FromString(file.read()).template for file in files if file]


def test_a_package_is_named_by_its_content_and_holds_the_code(built: Path) -> None:
    command, variables = (
        [sys.executable, "-m", "scripts.registration"],
        {**os.environ, "STEPTOOL_PROFILE": "configs/cluster.yaml"},
    )
    process = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    assert built.name == f"steptool-{process.stdout.strip()}.tgz"
    with tarfile.open(built) as archive:
        assert [name.endswith(".tar.gz") for name in archive.getnames()].count(True) == 1


def test_every_stage_runs_in_an_image_that_flyte_config_names(tasks: list[TaskTemplate]) -> None:
    names = ("localhost:30000/steptool-cpu:0.1.0", "localhost:30000/steptool-gpu:0.1.0")
    assert {task.container.image for task in tasks} == set(names)
    assert all(name in (ROOT / "flyte.config").read_text() for name in names)


def test_every_program_that_a_pod_calls_is_one_of_the_installed_packages(tasks: list[TaskTemplate]) -> None:
    programs = {point.name: point.dist for point in metadata.entry_points(group="console_scripts")}
    called = {word for task in tasks for word in task.container.args if word.startswith("pyflyte-")}
    assert called == {"pyflyte-fast-execute", "pyflyte-execute"}
    for program in called | {"pyflyte-map-execute"}:  # map tasks are laid out at run time
        assert programs[program].name == "flytekit"
    assert {task.container.args[0] for task in tasks} == {"pyflyte-fast-execute"}


def test_the_modules_that_start_the_processes_of_a_training_are_there() -> None:
    files = set(map(str, metadata.distribution("torch").files or ()))
    assert {"torch/distributed/run.py", "torch/distributed/launcher/api.py"} <= files
