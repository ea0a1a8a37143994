"""Nights of retraining on a cluster: data, registry and results in the store, every node as its pod."""

import runpy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pods.engine import Engine, Execution
from pods.package import Registry as Entities
from pods.store import Store
from small_runs import retraining_settings, train_on_logs
from steptool.config import Config
from steptool.registry import Registry

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
RETRAIN = "workflows.retrain.retrain"
write_night = runpy.run_path(str(ROOT / "examples" / "nightly" / "logs.py"))["write_night"]
Run = Callable[[int], Execution]


@pytest.fixture(scope="module")
def place(store: Store) -> str:
    return f"{store.root}/nightly"


def settings(place: str, base: str) -> Config:
    """A night of little work."""
    changes = {
        "rollout": {"episodes": 8, "shards": 2, "max_steps": 8},
        "ppo": {"rounds": 1, "epochs": 1, "batch_size": 8, "value_warmup_rounds": 1},
        # a model that solves more tasks calls more tools than one that gives up, hence more of them wrongly
        "promotion": {"approval": True, "max_invalid_rise": 0.2},
    }
    return Config.model_validate(retraining_settings(place, base) | changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, store: Store, place: str) -> str:
    """Url of what is in service at first: a model that careless logs have spoiled."""
    folder = tmp_path_factory.mktemp("careless")
    write_night(folder, "before", 130, 1.0)
    model = train_on_logs(settings(str(folder), "embedded"), folder, steps=24)
    return store.upload(model, f"{place}/base")


@pytest.fixture(scope="module")
def config(place: str, base: str) -> Config:
    return settings(place, base)


@pytest.fixture(scope="module")
def run(engine: Callable[..., Engine], project: Entities, config: Config, place: str) -> Run:
    """A night by its number; whoever is asked says yes."""
    cluster = engine(project, answers={"approve": True})

    def night(number: int) -> Execution:
        inputs = {"config": config, "registry": f"{place}/registry", "output": f"{place}/runs"}
        kickoff = datetime(2026, 11, number, 2, tzinfo=UTC)
        return cluster.execute(RETRAIN, {**inputs, "kickoff": kickoff, "force": False})

    return night


@pytest.fixture
def registry(place: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry as a person with the keys of the store sees it."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return Registry(f"{place}/registry")


def ending(execution: Execution) -> str:
    assert execution.error is None, execution.story()
    return str(execution.outputs.literals["result"].scalar.primitive.string_value)


def test_three_nights(run: Run, registry: Registry, store: Store, place: str, tmp_path: Path) -> None:
    """One promotes after a person's yes, one finds nothing new, one breaks and leaves the champion alone."""
    # a careful expert's logs teach the model nearly every task
    write_night(tmp_path, "monday", 130, 0.0)
    store.upload(tmp_path, place)
    promoted = run(1)
    print(promoted.story())
    assert ending(promoted) == "promoted", registry.runs()[-1]["reasons"]
    champion = registry.champion()
    assert champion is not None
    assert champion.sequence == 1
    assert promoted.outputs.literals["version"].scalar.primitive.string_value == champion.version_id
    assert registry.verify() == []

    skipped = run(2)
    assert ending(skipped) == "skipped"
    assert {pod.task for pod in skipped.pods} == {
        "tasks.retrain.plan_retraining",
        "workflows.retrain.challenge",
        "tasks.retrain.report_retraining",
    }

    store.write(f"{place}/tasks/tuesday.jsonl", b"{not json}\n")
    broken = run(3)
    assert broken.error is not None
    assert "tuesday.jsonl, line 1: not JSON" in broken.error.message
    assert len(broken.ran("tasks.ingest.ingest")) == 1  # no second attempt can mend it
    assert len(broken.ran("tasks.retrain.record_failure")) == 1
    record = registry.runs()[-1]
    assert record["result"] == "failed"
    assert "tuesday.jsonl, line 1: not JSON" in record["reasons"][0]
    assert registry.champion() == champion
