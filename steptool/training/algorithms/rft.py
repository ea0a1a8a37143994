"""Rejection fine-tuning, the baseline without a value function: imitate the trajectories that were solved."""

from __future__ import annotations

from collections.abc import Sequence

from steptool.models.actor import Indices
from steptool.records import Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training.algorithms.base import Algorithm, Selection, find_solved_ids
from steptool.training.processes import count_updates, draw_grouped_batches
from steptool.training.trainer import Supervised


class RejectionFineTuning(Supervised, Algorithm):
    """Takes as many optimizer steps, of the same size and at the same learning rates, as StepPPO would take.

    StepPPO would take them on all of the round's trajectories.
    """

    stage = "rft"

    def select(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[StepReward], scale: RunningScale
    ) -> Selection:
        """The trajectories that the annotator calls solved."""
        solved = find_solved_ids(rewards)
        selection = [t for t in trajectories if t.trajectory_id in solved and t.spans]
        number = Metric(self.stage, self.round_index, 0, "kept_trajectories", float(len(selection)))
        note = f"round {self.round_index}: none of {len(trajectories)} trajectories was solved"
        self._round_size = len(trajectories)
        return Selection(selection, len(trajectories) - len(selection), scale=scale, metrics=[number], note=note)

    @property
    def temperature(self) -> float:
        """The temperature of the rollouts, or `ppo.rft_temperature` if it is set.

        At the temperature of the rollouts the likelihood is that of the policy that was sampled from. Logits that are
        fitted at tau to tokens sampled at tau_0 grow by tau / tau_0, so a higher temperature makes the policy sharper.
        """
        return self.config.ppo.rft_temperature or super().temperature

    def steps(self, lengths: Indices) -> list[Indices]:
        """Shuffled passes in batches of similar length until there are as many steps as StepPPO would take."""
        ppo = self.config.ppo
        count = ppo.epochs * count_updates(self._round_size, ppo.batch_size)
        return draw_grouped_batches(lengths, ppo.batch_size, count, self.seed)
