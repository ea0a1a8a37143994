"""Baselines without a value function: a try is compared with the other tries at the same query.

GRPO (Shao et al. 2024, arXiv 2402.03300) gives all tokens of an episode one advantage. GiGPO (Feng et al. 2025, arXiv
2505.10978) adds one for each step, among the steps that were taken in the same state:

    GRPO:   A_b   = (R_b - mean R) / std R                      over the tries at the query
    GiGPO:  A_b,t = A_b + state_weight * A_state(b, t)          A_state: the same for discounted returns from a state

The policy loss is that of StepPPO with all its options. The penalty for leaving the reference is part of the loss,

    kl_coef * (pi_ref / pi - log(pi_ref / pi) - 1),

and not of the rewards, where the division by the deviation of a group would blow it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from steptool.config import Config
from steptool.models.actor import ActionOutputs
from steptool.training import credit
from steptool.training.algorithms.base import Selection
from steptool.training.algorithms.step_ppo import Experience, StepPPO
from steptool.training.scores import Scores


class GroupRelative(StepPPO):
    """GRPO on the composed rewards of episodes."""

    compares_states: ClassVar[bool] = False
    """Whether the steps taken in one state are compared as well."""

    @staticmethod
    def learns_values(config: Config) -> bool:
        """The group takes the place of a value head."""
        return False

    def assign(self, selection: Selection, lengths: Sequence[credit.Ints], scores: Scores) -> credit.Credit:
        """Advantages within groups; nothing for a value head to learn."""
        settings = self.config.credit
        groups = credit.group_trajectories(selection.trajectories, settings.state)
        adv_S = credit.episode_advantages(selection.rewards, groups, settings.group_scale)
        if self.compares_states:
            by_state_S = credit.state_advantages(selection.rewards, groups, settings.gamma, settings.group_scale)
            adv_S = adv_S + settings.state_weight * by_state_S
        adv_N = np.repeat(adv_S, np.concatenate(lengths))
        return credit.Credit(adv_N, adv_N, np.zeros(len(adv_N), dtype=np.bool_), np.zeros(len(adv_N)))

    def penalty(self, ratio_N: Tensor, out: ActionOutputs, experience: Experience) -> Tensor | float:
        """The divergence from the reference, besides what StepPPO adds."""
        kl = kl_loss(out.log_probs_N, experience.reference_N).sum()
        return super().penalty(ratio_N, out, experience) + self.config.ppo.kl_coef * kl


class GroupInGroup(GroupRelative):
    """GiGPO: GRPO, and advantages of steps among those taken in the same state."""

    compares_states = True


def kl_loss(log_probs_N: Tensor, reference_N: Tensor) -> Tensor:
    """r - log r - 1 with r = pi_ref / pi: GRPO's penalty for leaving the reference (arXiv 2402.03300, equation 4)."""
    log_r_N = reference_N - log_probs_N
    return log_r_N.exp() - log_r_N - 1.0
