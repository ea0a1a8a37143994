"""Models that play, and small worlds whose rounds are learned from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from play_fixtures import codec, random_model, tokenizer  # noqa: F401
from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.pipeline.episodes import TaskSet
from steptool.pipeline.learning import RoundInputs
from steptool.pipeline.preparation import prepare
from steptool.records import Query, Trajectory
from steptool.records.tables import read_records, write_records


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RoundInputs]:
    """world(policy settings): the base of a small world, with three rounds that change the weights clearly."""

    def make(**policy: object) -> RoundInputs:
        folder = tmp_path_factory.mktemp("world")
        rounds = {"rounds": 3, "epochs": 1, "batch_size": 2, "micro_batch_size": 2, "value_warmup_rounds": 1}
        config = Config.model_validate(
            {
                "data": {"train_queries": 6, "validation_queries": 1, "heldout_queries": 1},
                "policy": {"max_context": 700, **policy},
                "warm_start": {"demonstrations": 6},
                "rollout": {"episodes": 4, "shards": 2, "max_steps": 2, "max_new_tokens": 20},
                "rewards": {"normalisation": "running"},
                "ppo": {**rounds, "learning_rate": 0.001},
            }
        )
        read = ingest(config, folder / "data")
        demonstrations = read_records(read.demonstrations_path, Trajectory)
        base = prepare(read_records(read.queries_path, Query), demonstrations, config, folder / "start")
        queries = write_records(folder / "queries.parquet", base.queries, Query)
        tasks = TaskSet.write(folder / "tasks", queries, read.demonstrations_path, config)
        return RoundInputs(base.model, tasks, queries, config)

    return make
