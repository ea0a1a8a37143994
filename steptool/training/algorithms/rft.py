"""Rejection fine-tuning, the baseline without a value function: imitate the trajectories that were solved."""

from __future__ import annotations

from collections.abc import Sequence

from steptool.models.actor import Indices
from steptool.records import Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training.algorithms.base import Algorithm, Selection, Supervised, solved_ids
from steptool.training.processes import grouped_batches, updates_per_epoch


class RejectionFineTuning(Supervised, Algorithm):
    """Takes as many optimizer steps, of the same size and at the same learning rates, as StepPPO would take.

    StepPPO's are those on all of the round's trajectories.
    """

    stage = "rft"

    def select(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[StepReward], scale: RunningScale
    ) -> Selection:
        """The trajectories that the annotator calls solved."""
        solved = solved_ids(rewards)
        selection = [t for t in trajectories if t.trajectory_id in solved and t.spans]
        number = Metric(self.stage, self.round_index, 0, "kept_trajectories", float(len(selection)))
        note = f"round {self.round_index}: none of {len(trajectories)} trajectories was solved"
        self._round_size = len(trajectories)
        return Selection(selection, len(trajectories) - len(selection), scale=scale, metrics=[number], note=note)

    @property
    def temperature(self) -> float:
        """That of the rollouts, so that the likelihood is that of the policy which was sampled from, or its own.

        Fitted at tau what was sampled at tau_0, logits grow by tau / tau_0: a higher temperature sharpens by itself.
        """
        return self.config.ppo.rft_temperature or super().temperature

    def steps(self, lengths: Indices) -> list[Indices]:
        """Shuffled passes in batches of similar length until there are as many steps as StepPPO would take."""
        ppo = self.config.ppo
        count = ppo.epochs * updates_per_epoch(self._round_size, ppo.batch_size)
        return grouped_batches(lengths, ppo.batch_size, count, self.seed)
