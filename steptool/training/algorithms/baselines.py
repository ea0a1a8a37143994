"""Baselines that learn from the episodes of a round in other ways than StepPPO: imitation, groups, a critic of steps.

`RejectionFineTuning` has no value function: it imitates the trajectories that were solved.

`GroupRelative` and `GroupInGroup` have none either: a try is compared with the other tries at the same query. GRPO
(Shao et al. 2024, arXiv 2402.03300) gives all tokens of an episode one advantage. GiGPO (Feng et al. 2025, arXiv
2505.10978) adds one for each step, among the steps that were taken in the same state:

    GRPO:   A_b   = (R_b - mean R) / std R                      over the tries at the query
    GiGPO:  A_b,t = A_b + state_weight * A_state(b, t)          A_state: the same for discounted returns from a state

The policy loss is that of StepPPO with all its options. The penalty for leaving the reference is part of the loss,

    kl_coef * (pi_ref / pi - log(pi_ref / pi) - 1),

and not of the rewards, where the division by the deviation of a group would blow it up.

`StepCritic` follows ArCHer (Zhou et al. 2024, arXiv 2402.19446), which learns at two levels: a critic of whole
utterances by temporal differences, and a policy of tokens that takes the advantage of its utterance. Here the value
head is that critic. It says V(s_t) before a step's first token and Q(s_t, a_t) before its last, where it has read the
call:

    A_t = Q(s_t, a_t) - V(s_t),    target of Q: r_t + gamma * G_{t+1},    target of V: Q(s_t, a_t)

with lambda returns G; credit.lam 0 gives ArCHer's one-step target r_t + gamma * V(s_{t+1}).

What differs from that paper: one head with the features of the policy in place of two networks of its own, the values
of the round's start in place of a slowly moving target network, the episodes of a round in place of a replay buffer,
and the clipped loss of PPO in place of REINFORCE, since a round is learned from in several passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from steptool.config import Config, CreditConfig
from steptool.models.actor import ActionOutputs, Indices
from steptool.records import Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training import credit
from steptool.training.algorithms.base import Algorithm, Selection, Supervised, find_solved_ids
from steptool.training.algorithms.step_ppo import Experience, StepPPO
from steptool.training.groups import group_trajectories
from steptool.training.processes import count_updates, draw_grouped_batches
from steptool.training.scores import Scores


class RejectionFineTuning(Supervised, Algorithm):
    """Takes as many optimizer steps, of the same size and at the same learning rates, as StepPPO would take.

    StepPPO's are those on all of the round's trajectories.
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
        groups = group_trajectories(selection.trajectories, settings.state)
        adv_S = credit.episode_advantages(selection.rewards, groups, settings.group_scale)
        if self.compares_states:
            by_state_S = credit.state_advantages(selection.rewards, groups, settings.gamma, settings.group_scale)
            adv_S = adv_S + settings.state_weight * by_state_S
        adv_N = np.repeat(adv_S, np.concatenate(lengths))
        return credit.Credit(adv_N, adv_N, np.zeros(len(adv_N), dtype=np.bool_), np.zeros(len(adv_N)))

    def penalty(self, ratio_N: Tensor, out: ActionOutputs, experience: Experience) -> Tensor | float:
        """The divergence from the reference, besides what StepPPO adds."""
        kl = credit.kl_loss(out.log_probs_N, experience.reference_N).sum()
        return super().penalty(ratio_N, out, experience) + self.config.ppo.kl_coef * kl


class GroupInGroup(GroupRelative):
    """GiGPO: GRPO, and advantages of steps among those taken in the same state."""

    compares_states = True


class StepCritic(StepPPO):
    """Advantages Q(s, a) - V(s) of steps by a learned critic."""

    def assign(self, selection: Selection, lengths: Sequence[credit.Ints], scores: Scores) -> credit.Credit:
        """Credit by the critic; the divergence from the reference costs as in StepPPO."""
        kl_N = scores.log_probs_N - scores.reference_N
        cuts = np.cumsum([int(lengths_T.sum()) for lengths_T in lengths])[:-1]
        rewards = [
            rewards_T - self.config.ppo.kl_coef * credit.sum_by_step(kl_n, lengths_T)
            for rewards_T, kl_n, lengths_T in zip(selection.rewards, np.split(kl_N, cuts), lengths, strict=True)
        ]
        return step_critic(rewards, lengths, scores.values_N, self.config.credit)


def step_critic(
    step_rewards: Sequence[credit.Floats],
    step_lengths: Sequence[credit.Ints],
    values_N: credit.Floats,
    config: CreditConfig,
) -> credit.Credit:
    """Credit of trajectories, packed end to end, from what the critic says before each of their action tokens.

    step_rewards: rewards [T] of each trajectory's steps; step_lengths: their numbers of action tokens [T]. A step of
    one token has no Q of its own: the target of Q stands for it.
    """
    lengths_S = np.concatenate(step_lengths)
    steps_B = np.array([len(x) for x in step_lengths], dtype=np.int64)
    rewards_S, values_S = np.concatenate(step_rewards), credit.take_first_of_step(values_N, lengths_S)
    targets_S = credit.gae(rewards_S, values_S, steps_B, config.gamma, config.lam) + values_S
    first_S, last_S = credit.find_first_tokens(lengths_S), np.cumsum(lengths_S) - 1
    q_S = np.where(lengths_S > 1, values_N[last_S], targets_S)
    returns_N, mask_N = np.zeros(len(values_N)), np.zeros(len(values_N), dtype=np.bool_)
    returns_N[last_S] = targets_S
    returns_N[first_S] = q_S
    mask_N[last_S] = mask_N[first_S] = True
    return credit.Credit(np.repeat(q_S - values_S, lengths_S), returns_N, mask_N, np.repeat(values_S, lengths_S))
