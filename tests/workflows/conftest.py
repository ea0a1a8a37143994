"""The smallest run that goes through every stage."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from small_runs import SMALL_TRAINING
from steptool.config import Config


@pytest.fixture(scope="session")
def small() -> Config:
    return Config.model_validate(SMALL_TRAINING)
