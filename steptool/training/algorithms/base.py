"""What an algorithm is: what it takes of a round, what it learns from, and what it keeps for its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from steptool.config import Config
from steptool.models.actor import Indices
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import NO_REWARDS_SEEN, RunningScale
from steptool.training.processes import draw_mini_batches
from steptool.training.scores import Scores


@dataclass(frozen=True)
class Selection:
    """The trajectories of a round that an algorithm learns from."""

    trajectories: Sequence[Trajectory]
    left_out: int
    """Trajectories of the round that it cannot or does not learn from."""
    rewards: Sequence[npt.NDArray[np.floating]] = ()
    """Rewards [T] of the steps of each trajectory, where the algorithm needs them."""
    solved: frozenset[str] = frozenset()
    """Ids of the round's trajectories that the annotator calls solved."""
    scale: RunningScale = NO_REWARDS_SEEN
    """The scale of rewards with those of this round."""
    metrics: list[Metric] = field(default_factory=list)
    """Figures of the selection itself."""
    note: str = ""
    """What a reader should know where no trajectory is left to learn from."""


def find_solved_ids(rewards: Iterable[StepReward]) -> frozenset[str]:
    """Ids of the trajectories that the annotator calls solved."""
    return frozenset(reward.trajectory_id for reward in rewards if reward.is_solved == 1.0)


class Algorithm(ABC):
    """One round of learning from episodes. A subclass says what it needs.

    It is an Objective of steptool.training.trainer as well, unless it has a trainer of its own.
    """

    stage: ClassVar[str]
    """Stage of its metrics."""
    needs_value_head: bool = False
    needs_scores: ClassVar[bool] = False
    """Whether policy, reference and value head score the round's action tokens before the first update."""
    trains_policy: bool = True

    def __init__(self, config: Config, round_index: int) -> None:
        self.config = config
        self.round_index = round_index

    @property
    def learning_rate(self) -> float:
        """lr * (1 - (1 - f) * round / (rounds - 1)): linear from lr to the share f of it in the last round."""
        ppo = self.config.ppo
        share = min(1.0, self.round_index / max(1, ppo.rounds - 1))
        return ppo.learning_rate * (1.0 - (1.0 - ppo.final_learning_rate) * share)

    @property
    def temperature(self) -> float:
        """Temperature of the log-probabilities that it learns from: that of the rollouts, which it improves."""
        return self.config.rollout.temperature

    @property
    def seed(self) -> int:
        """Decides how this round's sequences are shuffled."""
        return self.config.seed + self.round_index

    @abstractmethod
    def select(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[StepReward], scale: RunningScale
    ) -> Selection:
        """Choose what to learn from; `scale` is that of the rewards of earlier rounds."""

    def steps(self, lengths: Indices) -> list[Indices]:
        """The sequences of each optimizer step: `ppo.epochs` shuffled passes."""
        return draw_mini_batches(len(lengths), self.config.ppo.batch_size, self.config.ppo.epochs, self.seed)

    def prepare(self, selection: Selection, scores: Scores, device: torch.device) -> list[Advantage]:
        """Keep what the loss needs of the scores on the device of the model; returns the advantage of each step."""
        raise NotImplementedError(f"{type(self).__name__} sets needs_scores, so it has to say what it does with them")
