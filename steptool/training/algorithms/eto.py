"""ETO (Song et al. 2024, arXiv 2403.02502): DPO on pairs of a better and a worse try at the same query.

    L = mean over pairs of -log sigmoid(beta * (d_better - d_worse)),    d = log pi(tau) - log pi_ref(tau)

log pi(tau) sums over the tokens that the policy sampled, observations left out. The reference is the policy at the
round's start, whose tries are compared: each round is one iteration of exploration and learning. TRL's DPOTrainer has
the loss and makes the optimizer steps (steptool.training.preference).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import torch

from steptool.config import Config
from steptool.models.actor import Indices
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training.algorithms.base import Algorithm, Selection
from steptool.training.processes import draw_equal_steps
from steptool.training.scores import Scores

Pair = tuple[Trajectory, Trajectory]
"""The better and the worse trajectory of a query."""


class ExplorationPreference(Algorithm):
    """Each step takes half as many pairs as StepPPO takes trajectories, and so as many sequences."""

    stage = "eto"
    needs_scores = True

    def __init__(self, config: Config, round_index: int) -> None:
        super().__init__(config, round_index)
        self.references: list[float] = []
        """log pi_ref of each trajectory: the sum over its action tokens (nats)."""

    @property
    def pairs_per_pass(self) -> int:
        """Pairs in a forward pass on one process, at most."""
        return max(1, self.config.ppo.micro_batch_size // 2)

    def select(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[StepReward], scale: RunningScale
    ) -> Selection:
        """The pairs of all queries, the better one of each first. Its reward is IsSolved of its last step."""
        outcomes = {reward.trajectory_id: reward.is_solved for reward in rewards if reward.is_solved is not None}
        tries: dict[str, list[Trajectory]] = defaultdict(list)
        for t in trajectories:
            if t.spans and t.trajectory_id in outcomes:
                tries[t.query_id].append(t)
        pairs = [pair for group in tries.values() for pair in _pair(group, outcomes)]
        selection = [t for pair in pairs for t in pair]
        left_out = len(trajectories) - len({t.trajectory_id for t in selection})
        number = Metric(self.stage, self.round_index, 0, "pairs_of_tries", float(len(pairs)))
        note = f"round {self.round_index}: no query has a better and a worse try among {len(trajectories)} trajectories"
        return Selection(selection, left_out, scale=scale, metrics=[number], note=note)

    def steps(self, lengths: Indices) -> list[Indices]:
        """Shuffled passes over the pairs."""
        ppo = self.config.ppo
        return draw_equal_steps(len(lengths), max(1, ppo.batch_size // 2), self.pairs_per_pass, ppo.epochs, self.seed)

    def prepare(self, selection: Selection, scores: Scores, device: torch.device) -> list[Advantage]:
        """Keep the log-probabilities at the round's start; there are no advantages."""
        ends = np.cumsum([t.action_tokens for t in selection.trajectories])
        self.references = [float(part.sum()) for part in np.split(scores.log_probs_N.astype(np.float64), ends[:-1])]
        return []


def _pair(tries: Sequence[Trajectory], outcomes: Mapping[str, float]) -> Iterator[Pair]:
    """Each of the best tries with a worse one, and each worse one with one of the best."""
    best = max(outcomes[t.trajectory_id] for t in tries)
    better = [t for t in tries if outcomes[t.trajectory_id] == best]
    worse = [t for t in tries if outcomes[t.trajectory_id] < best]
    count = max(len(better), len(worse)) if worse else 0
    yield from islice(zip(cycle(better), cycle(worse), strict=False), count)
