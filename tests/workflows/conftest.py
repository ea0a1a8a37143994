"""The smallest run that goes through every stage."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from steptool.config import Config


@pytest.fixture(scope="session")
def small() -> Config:
    return Config.model_validate(
        {
            "data": {"train_queries": 8, "validation_queries": 2, "heldout_queries": 4},
            "policy": {"base": "scratch", "max_context": 1600},
            "warm_start": {"demonstrations": 8, "steps": 2, "batch_size": 4},
            "rollout": {"episodes": 5, "shards": 2, "max_steps": 3, "max_new_tokens": 16},
            "ppo": {"rounds": 2, "epochs": 1, "batch_size": 3, "micro_batch_size": 3, "value_warmup_rounds": 1},
            "evaluation": {"bootstrap": 200},
        }
    )
