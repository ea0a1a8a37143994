"""A round of a tiny policy, made by the tasks themselves, and attempts of the task that trains on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from flytekit.bin.entrypoint import setup_execution

from steptool.config import Config
from tasks.episodes import annotate_shard, audit, rollout
from tasks.ingest import ingest
from tasks.runtime.artifacts import Model, Parquet
from tasks.training import PpoOutputs, ppo, prepare

ROUND = {
    "data": {"train_queries": 6, "validation_queries": 2, "heldout_queries": 2},
    "policy": {"base": "scratch", "max_context": 1600},
    "warm_start": {"demonstrations": 6},
    "rollout": {"episodes": 4, "shards": 1, "max_steps": 3, "max_new_tokens": 8},
    "rewards": {"audit": {"max_missing": 1.0}},
    "ppo": {"epochs": 10, "batch_size": 2, "micro_batch_size": 2, "value_warmup_rounds": 0, "learning_rate": 1e-3},
}
Attempt = Callable[..., PpoOutputs]


def artifacts(inputs: dict[str, Any]) -> dict[str, Any]:
    """Paths as a task takes them."""
    kinds = {"policy": Model, "reference": Model, "trajectories": Parquet, "rewards": Parquet, "costs": Parquet}
    return inputs | {name: kind(inputs[name]) for name, kind in kinds.items()}


@pytest.fixture(scope="session")
def round_inputs() -> dict[str, Any]:
    """Inputs of the task ppo, as plain values and paths: 20 updates on 4 episodes."""
    config = Config.model_validate(ROUND)
    result = ingest(config=config, sources="")
    base = prepare(
        config=config, queries=result.queries, demonstrations=result.demonstrations, quarantine=result.quarantine
    )
    played = rollout(shard=0, round_index=0, config=config, model=base.model, base=base.model, tasks=base.tasks)
    scored = annotate_shard(shard=played, round_index=0, config=config, queries=base.queries)
    checked = audit(round_index=0, config=config, queries=base.queries, episode_shards=[played], reward_shards=[scored])
    files = {"trajectories": checked.trajectories, "rewards": checked.rewards, "costs": checked.costs}
    model = str(base.model)
    return {
        "round_index": 0,
        "config": config,
        "policy": model,
        "reference": model,
        "scale": None,
        **{k: str(v) for k, v in files.items()},
    }


@pytest.fixture(scope="session")
def attempt(round_inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """attempt(dest, source): ppo run as by a pod, with Flyte's own checkpoints in these folders."""

    def run(dest: Path, source: Path | None = None) -> PpoOutputs:
        raw = tmp_path_factory.mktemp("raw")
        with setup_execution(str(raw), checkpoint_path=str(dest), prev_checkpoint=source and str(source)):
            return ppo.execute(**artifacts(round_inputs))

    return run
