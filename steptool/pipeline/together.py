"""Several rounds in one process: each plays, is scored and audited, and trains, as it does in pods of its own.

Engine and trainer take turns. After each round the state is kept, so that another attempt goes on behind it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steptool.artifacts import layout
from steptool.artifacts.progress import say
from steptool.config import Config
from steptool.models.adapter import is_adapter, locate
from steptool.pipeline.rounds import (
    EPISODES,
    AuditedRound,
    LearnedRound,
    Place,
    audit_round,
    learn_round,
    play_shard,
    score_file,
)
from steptool.training.checkpoints import OnCheckpoint, last_checkpoint, seal


@dataclass(frozen=True)
class FinishedRound:
    """What a round has made."""

    audited: AuditedRound
    learned: LearnedRound


@dataclass(frozen=True)
class RoundsState:
    """The folder of the rounds that one stage has finished, and of its attempts."""

    path: Path
    on_checkpoint: OnCheckpoint | None = None

    def finished(self, first: int) -> list[FinishedRound]:
        """The rounds from the index `first` on that are behind the last checkpoint; only the last has a model."""
        last = last_checkpoint(self.path)
        rounds = sorted(last.glob("round_*")) if last else []
        return [_read_round(folder, first + number) for number, folder in enumerate(rounds)]
