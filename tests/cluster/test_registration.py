"""The project as a cluster gets it: packaged, checked, registered by pyflyte, activated."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from flyteidl.core.tasks_pb2 import Resources, TaskTemplate

from pods import admin
from pods.admin import Admin
from pods.admission import find_refusals
from pods.engine import Engine
from pods.literals import uri
from pods.package import Registry
from pods.store import Store
from steptool.config import Config

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).parent / "toys"
PLACE = ("-p", "steptool", "-d", "development")
CODE = ("--copy", "all", "--destination-dir", ".")
PROFILE = "configs/cluster.yaml"
Pyflyte = Callable[..., CompletedProcess[str]]


def requests_of(task: TaskTemplate) -> dict[str, str]:
    """Requests of a task by name."""
    return {Resources.ResourceName.Name(entry.name): entry.value for entry in task.container.resources.requests}


def environment(task: TaskTemplate) -> dict[str, str]:
    return {pair.key: pair.value for pair in task.container.env}


def test_everything_passes_the_compiler_and_admin(project: Registry) -> None:
    assert find_refusals(project) == []
    names = {key.name for key in project.workflows}
    assert {
        f"workflows.{name}.{name}" for name in ("train", "evaluate", "annotate", "export", "ingest", "view")
    } <= names


def test_the_tarball_holds_lazily_imported_modules_and_data(packaged: Callable[..., Path]) -> None:
    tarball = next(packaged(ROOT, "workflows").glob("fast*.tar.gz"))
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
    assert {
        "steptool/training/trainer.py",
        "steptool/report/elements.py",
        "steptool/environments/desk/base/model.safetensors",
        PROFILE,
    } <= names


def test_without_a_profile_tasks_ask_for_nothing(project: Registry) -> None:
    for task in project.tasks.values():
        assert task.container.image == "localhost/steptool:cpu", task.id.name
        assert requests_of(task) == {}
        assert not task.metadata.interruptible
        assert "STEPTOOL_PROFILE" not in environment(task)
        assert task.type == "python-task"


@pytest.mark.cluster
def test_a_workflow_runs_in_pods(project: Registry, engine: Callable[..., Engine], store: Store) -> None:
    config = Config.model_validate({"data": {"train_queries": 8, "validation_queries": 2, "heldout_queries": 4}})
    execution = engine(project).execute(
        "workflows.ingest.ingest", {"config": config, "output": f"{store.root}/ingested"}
    )
    assert execution.error is None, execution.story()
    assert uri(execution.outputs.literals["queries"]) == f"{store.root}/ingested/queries.parquet"
    assert f"{store.root}/ingested/demonstrations.parquet" in store.names(f"{store.root}/ingested")


@pytest.fixture(scope="module")
def cluster(engine: Callable[..., Engine]) -> Iterator[tuple[Admin, str]]:
    with admin.serve_admin(engine(Registry())) as served:
        yield served


def test_pyflyte_registers_and_activates_and_the_profile_stands_in_the_tasks(
    cluster: tuple[Admin, str], pyflyte: Pyflyte
) -> None:
    flyte, address = cluster
    command = ("register", *PLACE, *CODE, "--version", "v1")
    process = pyflyte(address, ROOT, *command, "workflows", STEPTOOL_PROFILE=PROFILE)
    assert process.returncode == 0, process.stdout + process.stderr
    _holds_the_profile(flyte.registry)

    for plan in ("nightly_retraining", "weekly_evaluation"):
        process = pyflyte(address, ROOT, "launchplan", *PLACE, plan, "--activate")
        assert process.returncode == 0, process.stdout + process.stderr
    assert {key.name for key in flyte.active.values()} == {"nightly_retraining", "weekly_evaluation"}
    nightly = flyte.registry.plan("nightly_retraining")[1]
    assert nightly.entity_metadata.schedule.kickoff_time_input_arg == "kickoff"
    assert nightly.concurrency_policy.max == 1


def _holds_the_profile(registry: Registry) -> None:
    for task in registry.tasks.values():
        assert environment(task)["STEPTOOL_PROFILE"] == PROFILE, task.id.name
    rollout, rounds, ppo = (
        registry.get_task(name) for name in ("tasks.episodes.rollout", "workflows.train.rounds", "tasks.training.ppo")
    )
    assert rollout.container.image.endswith("gpu") or "gpu" in rollout.container.image
    assert requests_of(rollout) == {"CPU": "6", "MEMORY": "32Gi", "EPHEMERAL_STORAGE": "60Gi", "GPU": "1"}
    assert rollout.metadata.interruptible
    assert rollout.extended_resources.gpu_accelerator.device == "nvidia-tesla-a100"
    assert not rounds.metadata.interruptible
    assert rounds.metadata.retries.retries == 3
    assert rollout.metadata.timeout.seconds == 4 * 3600
    assert rounds.metadata.timeout.seconds == 0  # it is at work as long as the stages that it lays out
    assert ppo.extended_resources.shared_memory.size_limit == "16Gi"
    assert (ppo.type, ppo.WhichOneof("target")) == ("python-task", "container")  # one node needs no operator


def test_registration_stops_where_admin_refuses(cluster: tuple[Admin, str], pyflyte: Pyflyte) -> None:
    _, address = cluster
    process = pyflyte(address, TOYS, "register", *PLACE, *CODE, "--version", "v1", "wrong")
    assert process.returncode != 0
    assert "the request 2 is greater than the limit" in process.stdout


def test_a_version_is_registered_once_and_the_same_again_is_no_fault(
    cluster: tuple[Admin, str], pyflyte: Pyflyte
) -> None:
    _, address = cluster
    command = ("register", *PLACE, *CODE, "--version", "v1", "flows")
    assert pyflyte(address, TOYS, *command).returncode == 0
    assert pyflyte(address, TOYS, *command).returncode == 0
    other = pyflyte(address, TOYS, *command, TOYS_CACHE_VERSION="2")
    assert other.returncode != 0
    assert "v1 exists already with a different structure" in other.stdout
