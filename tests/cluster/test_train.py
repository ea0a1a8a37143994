"""The train workflow, every node as its pod: undisturbed, again, with pods that are lost, and started from afar."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pods import admin
from pods.catalog import Catalog
from pods.engine import Engine, Execution
from pods.literals import uri
from pods.package import Registry
from pods.pod import Attempt, Ended, Kill
from pods.store import Store
from small_runs import SMALL_TRAINING
from steptool.config import Config

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
TRAIN, ROLLOUT, PPO = "workflows.train.train", "tasks.episodes.rollout", "tasks.training.ppo"
TOGETHER = "tasks.training.rounds_together"
UNCACHED = {"tasks.ingest.fingerprint", "workflows.train.rounds", "tasks.report.report"}
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def config(store: Store) -> Config:
    """One round with updates enough to be killed between, tracked in the bucket."""
    updates = {"rounds": 1, "epochs": 10, "value_warmup_rounds": 0}
    tracking = {"trackers": ["tensorboard"], "folder": f"{store.root}/tracking"}
    return Config.model_validate(SMALL_TRAINING | {"ppo": SMALL_TRAINING["ppo"] | updates, "tracking": tracking})


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture(scope="module")
def undisturbed(engine: Make, project: Registry, config: Config, catalog: Catalog, store: Store) -> Execution:
    execution = engine(project, catalog=catalog).execute(
        TRAIN, {"config": config, "output": f"{store.root}/undisturbed"}
    )
    assert execution.error is None, execution.story()
    print(execution.story())
    return execution


def after(seconds: float) -> Callable[[Attempt], bool]:
    """Whether a pod that was first seen at work is at work so much later."""
    observed: list[float] = []

    def passed(_: Attempt) -> bool:
        observed.append(time.monotonic())
        return observed[-1] - observed[0] > seconds

    return passed


def weights(store: Store, execution: Execution) -> bytes:
    return store.read(f"{uri(execution.outputs.literals['model'])}/model.safetensors") or b""


def test_every_pod_ends_well_and_the_run_is_whole(undisturbed: Execution, store: Store, config: Config) -> None:
    assert {pod.ended for pod in undisturbed.pods} == {Ended.DONE}
    assert len(undisturbed.ran(ROLLOUT)) == config.rollout.shards
    names = {name.removeprefix(f"{store.root}/undisturbed/") for name in store.names(f"{store.root}/undisturbed")}
    assert {"report.html", "metrics.json", "model/model.safetensors", "trajectories_round_00.parquet"} <= names
    assert uri(undisturbed.outputs.literals["report"]) == f"{store.root}/undisturbed/report.html"
    assert len(weights(store, undisturbed)) > 10_000


def test_all_pods_write_to_one_run_of_the_tracker(
    undisturbed: Execution, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    names = [name for name in store.names(f"{store.root}/tracking") if "tfevents" in name and undisturbed.name in name]
    (folder,) = {name.rpartition("/")[0] for name in names}
    tags = EventAccumulator(folder).Reload().Tags()
    expected = {"warm_start/loss", "ppo/kl", "ppo/clip_fraction", "ppo/value_loss", "ppo/entropy",
                "rounds/scores/succ_calling", "rounds/ppo/mismatch_mean", "rounds/seconds",
                "evaluation/base/greedy/all", "evaluation/steptool/greedy/all"}  # fmt: skip
    assert expected <= set(tags["scalars"])
    assert {"results/text_summary", "links/text_summary"} <= set(tags["tensors"])


def test_every_stage_shows_its_page(undisturbed: Execution, store: Store) -> None:
    """But for elements of map tasks, for which flytekit writes none, and for what only lays out others."""
    alone = [pod for pod in undisturbed.pods if pod.attempt.index is None and pod.task != "workflows.train.rounds"]
    assert [pod.task for pod in alone if not store.read(f"{pod.attempt.outputs}/deck.html")] == []
    assert "tasks.episodes.annotate" in {pod.task for pod in alone}


def test_the_whole_run_stays_below_five_minutes_of_two_cores(undisturbed: Execution) -> None:
    assert sum(pod.cpu_seconds for pod in undisturbed.pods) < 300  # even one core would do


def test_unchanged_inputs_and_code_start_no_pod_of_a_cached_stage(
    undisturbed: Execution, engine: Make, project: Registry, config: Config, catalog: Catalog, store: Store
) -> None:
    again = engine(project, catalog=catalog).execute(TRAIN, {"config": config, "output": f"{store.root}/again"})
    assert again.error is None, again.story()
    assert {pod.task for pod in again.pods} == UNCACHED
    assert weights(store, again) == weights(store, undisturbed)


def test_a_lost_shard_is_done_again_alone_and_a_killed_training_goes_on(
    undisturbed: Execution, engine: Make, project: Registry, config: Config, catalog: Catalog, store: Store
) -> None:
    kills = (Kill(ROLLOUT, after(3.0), index=1), Kill(PPO, lambda attempt: bool(store.names(attempt.checkpoints))))
    broken = engine(project, kills, catalog=catalog.without(ROLLOUT, PPO))
    execution = broken.execute(TRAIN, {"config": config, "output": f"{store.root}/disturbed"})
    assert execution.error is None, execution.story()

    shards = sorted((pod.attempt.index, pod.attempt.number, pod.ended) for pod in execution.ran(ROLLOUT))
    assert shards == [(0, 0, Ended.DONE), (1, 0, Ended.LOST), (1, 1, Ended.DONE)]
    first, second = execution.ran(PPO)
    assert (first.ended, second.ended) == (Ended.LOST, Ended.DONE)
    assert "going on from the checkpoint" in second.log
    assert weights(store, execution) == weights(store, undisturbed)


def test_rounds_placed_together_go_on_behind_the_last_finished_one(
    engine: Make, project: Registry, config: Config, store: Store
) -> None:
    tree = config.model_dump(mode="json")
    tree["ppo"] |= {"rounds": 2, "epochs": 1}
    tree["rounds"] = {"placement": "together", "per_stage": 2}
    kill = Kill(TOGETHER, lambda attempt: bool(store.names(attempt.checkpoints)))
    inputs = {"config": Config.model_validate(tree), "output": f"{store.root}/together"}
    execution = engine(project, (kill,), catalog=Catalog()).execute(TRAIN, inputs)
    assert execution.error is None, execution.story()
    first, second = execution.ran(TOGETHER)
    assert (first.ended, second.ended) == (Ended.LOST, Ended.DONE)
    assert "round 1 of 2" in first.log
    assert "going on from the checkpoint" in second.log and "round 1 of 2" not in second.log
    assert not execution.ran(ROLLOUT) and not execution.ran(PPO)
    names = {name.removeprefix(f"{store.root}/together/") for name in store.names(f"{store.root}/together")}
    assert {f"{kind}_round_0{r}.parquet" for kind in ("trajectories", "rewards", "advantages") for r in (0, 1)} <= names
    page = (store.read(f"{second.attempt.outputs}/deck.html") or b"").decode()
    assert "rewards of round 1" in page and "rewards of round 2" in page  # also of the round before the kill


def test_the_command_starts_it_on_the_cluster_and_finds_what_is_known(
    undisturbed: Execution,
    engine: Make,
    config: Config,
    catalog: Catalog,
    store: Store,
    pyflyte: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    config_file, output = tmp_path / "config.json", f"{store.root}/afar"
    config_file.write_text(json.dumps(config.model_dump(mode="json")))
    options = ("--remote", "-p", "steptool", "-d", "development", "--copy", "all", "--wait")
    workflow = ("workflows/train.py", "train", "--config", str(config_file), "--output", output)
    with admin.serve_admin(engine(Registry(), catalog=catalog)) as (flyte, address):
        process = pyflyte(address, ROOT, "run", *options, *workflow, **store.environment)
    ((_, _, run),) = flyte.executions.values()
    assert run.error is None, run.story()
    assert "has succeeded" in process.stdout, process.stdout + process.stderr
    assert {pod.task for pod in run.pods} == UNCACHED  # another version of the registration, but the same code
    assert weights(store, run) == weights(store, undisturbed)
