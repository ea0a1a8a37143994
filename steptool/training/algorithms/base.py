"""What an algorithm is: what it takes of a round, its loss and what it reports; and supervised learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steptool.config import Config
from steptool.models.actor import Actor, Indices, TokenBatch
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import NO_REWARDS_SEEN, RunningScale
from steptool.training.processes import draw_mini_batches
from steptool.training.scores import Scores


@dataclass(frozen=True)
class ForwardPass:
    """Sequences that go through the model together, as a part of an optimizer step."""

    batch: TokenBatch
    places_n: Tensor
    """Place of each action token of the batch among all action tokens of the training data, packed end to end."""
    step_places_n: Tensor
    """The same of all action tokens of the optimizer step, over all its passes and processes."""
    counts: bool = True
    """False: a repeated pass that keeps the processes of a sharded model together; nothing is learned from it."""


class LossTerms(NamedTuple):
    """The result of one forward pass."""

    loss: Tensor
    """This pass's share of the loss of its optimizer step: a sum over its tokens, divided by a number of the step."""
    sums: Mapping[str, Tensor] = {}
    """Figures that are added up over the passes and processes of an optimizer step."""
    maxima: Mapping[str, Tensor] = {}
    """Figures of which the largest counts."""


class Objective(ABC):
    """A loss, and the figures of an optimizer step that come with it."""

    sums: ClassVar[tuple[str, ...]] = ()
    """Names of the sums in its LossTerms."""
    maxima: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """Run the model on one forward pass. The losses of the passes of a step add up to that of the step."""

    def report(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Metrics of an optimizer step from the sums and maxima of its passes."""
        return {}


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
    """One round of learning from episodes. A subclass says what it needs and, as an Objective, its loss."""

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


class Supervised(Objective):
    """Mean negative log-likelihood of the action tokens of an optimizer step (nats per token)."""

    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """The pass's share of the mean."""
        return LossTerms(-actor(part.batch).log_probs_N.sum() / float(len(part.step_places_n)))
