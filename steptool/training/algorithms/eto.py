"""ETO (Song et al. 2024, arXiv 2403.02502): DPO on pairs of a better and a worse try at the same query.

    L = mean over pairs of -log sigmoid(beta * (d_better - d_worse)),    d = log pi(tau) - log pi_ref(tau)

log pi(tau) sums over the tokens that the policy sampled, observations left out. The reference is the policy at the
round's start, whose tries are compared: each round is one iteration of exploration and learning.

TRL's DPOTrainer has the same loss (a test compares them) and does not fit the rounds: its completion mask covers the
observations, it tokenises text a second time, takes log-probabilities at temperature 1, and its loop has an optimizer,
checkpoints and forward passes of its own, so that the moments would not go on from round to round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from steptool.config import Config
from steptool.models.actor import Actor, Indices
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training import credit
from steptool.training.algorithms.base import Algorithm, ForwardPass, LossTerms, Selection
from steptool.training.processes import mini_batches
from steptool.training.scores import Scores

Pair = tuple[Trajectory, Trajectory]
"""Positions of the better and the worse trajectory of a query."""


class ExplorationPreference(Algorithm):
    """Takes steps on half as many pairs as StepPPO takes trajectories; they hold as many sequences."""

    stage = "eto"
    needs_scores = True
    sums = ("pairs", "preference", "margin", "correct")
    unit = 2

    def __init__(self, config: Config, round_index: int) -> None:
        super().__init__(config, round_index)
        self._scores: tuple[Tensor, Tensor] | None = None

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
        return mini_batches(len(lengths), max(1, ppo.batch_size // 2), ppo.epochs, self.seed)

    def prepare(self, selection: Selection, scores: Scores, device: torch.device) -> list[Advantage]:
        """Keep the log-probabilities at the round's start and the trajectory of each token; there are no advantages."""
        tokens_B = [t.action_tokens for t in selection.trajectories]
        rows_N = np.repeat(np.arange(len(tokens_B)), tokens_B)
        self._scores = torch.from_numpy(scores.log_probs_N).to(device), torch.from_numpy(rows_N).to(device)
        return []

    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """The pass's share of the mean over the pairs of an optimizer step."""
        if self._scores is None:
            raise RuntimeError("there is no reference to compare with yet: call prepare first")
        reference_N, rows_N = self._scores
        gains_B = _sum_by_row(actor(part.batch).log_probs_N - reference_N[part.places_n], rows_N[part.places_n])
        better_P, worse_P = gains_B[0::2], gains_B[1::2]  # a forward pass holds whole pairs, in their order
        losses_P = credit.preference_loss(better_P, worse_P, self.config.ppo.dpo_beta)
        pairs = len(torch.unique(rows_N[part.step_places_n])) // 2
        margin_P = (better_P - worse_P).detach()
        sums = {
            "pairs": torch.tensor(float(len(losses_P)), device=losses_P.device),
            "preference": losses_P.detach().sum(),
            "margin": margin_P.sum(),
            "correct": (margin_P > 0).sum(),
        }
        return LossTerms(losses_P.sum() / pairs, sums)

    def report(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Means over the pairs of an optimizer step."""
        pairs = max(1.0, figures["pairs"])
        return {
            "preference_loss": figures["preference"] / pairs,
            "margin": figures["margin"] / pairs,
            "preferred": figures["correct"] / pairs,
        }


def _pair(tries: Sequence[Trajectory], outcomes: Mapping[str, float]) -> Iterator[Pair]:
    """Each of the best tries with a worse one, and each worse one with one of the best."""
    best = max(outcomes[t.trajectory_id] for t in tries)
    better = [t for t in tries if outcomes[t.trajectory_id] == best]
    worse = [t for t in tries if outcomes[t.trajectory_id] < best]
    count = max(len(better), len(worse)) if worse else 0
    yield from islice(zip(cycle(better), cycle(worse), strict=False), count)


def _sum_by_row(values_N: Tensor, rows_N: Tensor) -> Tensor:
    """Sum [B] over the tokens of each row, the rows in ascending order."""
    rows, places_N = torch.unique(rows_N, return_inverse=True)
    return torch.zeros(len(rows), dtype=values_N.dtype, device=values_N.device).index_add(0, places_N, values_N)
