"""A baseline with a critic of steps, after ArCHer (Zhou et al. 2024, arXiv 2402.19446).

ArCHer learns at two levels: a critic of whole utterances by temporal differences, and a policy of tokens that takes the
advantage of its utterance. Here the value head is that critic. It says V(s_t) before a step's first token and
Q(s_t, a_t) before its last, where it has read the call:

    A_t = Q(s_t, a_t) - V(s_t),    target of Q: r_t + gamma * G_{t+1},    target of V: Q(s_t, a_t)

with lambda returns G; credit.lam 0 gives ArCHer's one-step target r_t + gamma * V(s_{t+1}).

It differs from the paper in four things: one head with the features of the policy in place of two networks of its own,
the values of the round's start in place of a slowly moving target network, the episodes of a round in place of a replay
buffer, and the clipped loss of PPO in place of REINFORCE, since a round is learned from in several passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steptool.config import CreditConfig
from steptool.training import credit
from steptool.training.algorithms.base import Selection
from steptool.training.algorithms.step_ppo import StepPPO
from steptool.training.scores import Scores


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
