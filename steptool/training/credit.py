"""From step rewards to advantages: pure arithmetic on action tokens packed end to end.

The tokens that a policy sampled are the only time steps. Prompt and observation tokens lie between them in the text but
not in time: the last token of step t is followed by the first token of step t + 1. Every function here therefore works
on packed arrays, from which prompt and observations are already gone; `step_lengths` leads from a trajectory's spans to
them.

Letters of shapes: T steps of a trajectory; B trajectories with S steps and N action tokens in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steptool.config import CreditConfig

Floats = npt.NDArray[np.floating]
"""Real numbers of any precision; results are float64."""
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Spans = Sequence[tuple[int, int]]

_NEGLIGIBLE = 1e-20


@dataclass(frozen=True)
class Credit:
    """What each action token is worth, trajectory after trajectory.

    `advantages_N` are not whitened; `returns_N` = advantages + values are the targets of the value head, to be used
    where `value_mask_N` is true: everywhere for token-level credit, at the first token of each step for step-level.
    """

    advantages_N: Floats
    returns_N: Floats
    value_mask_N: Bools


def step_lengths(spans: Spans) -> Ints:
    """Action tokens of each step [T], from its span [start, end).

    Raises ValueError if a span is empty or the spans are out of order.
    """
    bounds = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    starts, ends = bounds[:, 0], bounds[:, 1]
    if (ends <= starts).any() or (starts[1:] < ends[:-1]).any() or (starts[:1] < 0).any():
        raise ValueError(f"spans must be ascending, disjoint and hold at least one token each, got {list(spans)}")
    lengths: Ints = ends - starts
    return lengths


def sum_by_step(packed_N: Floats, lengths_T: Ints) -> Floats:
    """Sum [T] of a packed quantity over the tokens of each step."""
    if len(lengths_T) == 0:
        return np.zeros(0)
    sums_T: Floats = np.add.reduceat(packed_N.astype(np.float64), _starts(lengths_T))
    return sums_T


def first_of_step(packed_N: Floats, lengths_T: Ints) -> Floats:
    """A packed quantity [T] at the first token of each step."""
    return packed_N[_starts(lengths_T)]


def token_rewards(step_rewards_T: Floats, lengths_T: Ints, kl_N: Floats, kl_coef: float) -> Floats:
    """Reward [N] of each action token: r_i = -kl_coef * kl_i, plus the step's reward on the last token of the step."""
    rewards_N = -kl_coef * kl_N.astype(np.float64)
    rewards_N[np.cumsum(lengths_T) - 1] += step_rewards_T
    return rewards_N


def gae(rewards_N: Floats, values_N: Floats, lengths_B: Ints, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimates [N] of B sequences packed end to end, each of them ending in a terminal state.

    delta_i = r_i + gamma * V_{i+1} - V_i        (V = 0 after a sequence's last entry)
    A_i     = delta_i + gamma * lam * A_{i+1}    (A = 0 after a sequence's last entry)

    The recurrence is solved by doubling: when A_i covers the next d deltas, A_i + (gamma * lam)^d * A_{i+d} covers 2 d.
    """
    ends_B = np.cumsum(lengths_B)
    next_values_N = np.append(values_N[1:], 0.0).astype(np.float64)
    next_values_N[ends_B[lengths_B > 0] - 1] = 0.0
    adv_N = rewards_N + gamma * next_values_N - values_N
    left_N = np.repeat(ends_B, lengths_B) - np.arange(1, len(adv_N) + 1)  # entries that follow in the same sequence
    decay, reach, longest = gamma * lam, 1, int(lengths_B.max(initial=0))
    while reach < longest and decay**reach > _NEGLIGIBLE:
        adv_N[:-reach] += decay**reach * np.where(left_N[:-reach] >= reach, adv_N[reach:], 0.0)
        reach *= 2
    return adv_N


def assign(
    step_rewards: Sequence[Floats],
    step_lengths: Sequence[Ints],
    values_N: Floats,
    kl_N: Floats,
    kl_coef: float,
    config: CreditConfig,
) -> Credit:
    """Credit of B trajectories, packed end to end.

    step_rewards: the composed rewards [T] of each trajectory's steps. step_lengths: their numbers of action tokens [T]
    (at least 1). values_N: value before each action token of all trajectories. kl_N: log pi - log ref of each action
    token (nats), which costs `kl_coef` per nat. Raises ValueError for arrays that do not fit each other and for rewards
    that are not finite.
    """
    _check(step_rewards, step_lengths, values_N, kl_N)
    lengths_S = np.concatenate([np.zeros(0, np.int64), *step_lengths])
    rewards_N = token_rewards(np.concatenate([np.zeros(0), *step_rewards]), lengths_S, kl_N, kl_coef)
    if config.level == "token":
        tokens_B = np.array([int(x.sum()) for x in step_lengths], dtype=np.int64)
        adv_N = gae(rewards_N, values_N, tokens_B, config.gamma, config.lam)
        return Credit(adv_N, adv_N + values_N, np.ones(len(adv_N), dtype=np.bool_))
    # One time step per assistant step: its value stands at its first token, its reward holds its tokens' KL penalties.
    steps_B = np.array([len(x) for x in step_lengths], dtype=np.int64)
    values_S = first_of_step(values_N, lengths_S)
    adv_S = gae(sum_by_step(rewards_N, lengths_S), values_S, steps_B, config.gamma, config.lam)
    mask_N = np.zeros(len(values_N), dtype=np.bool_)
    mask_N[_starts(lengths_S)] = True
    return Credit(np.repeat(adv_S, lengths_S), np.repeat(adv_S + values_S, lengths_S), mask_N)


def whiten(packed_N: Floats, eps: float = 1e-8) -> Floats:
    """(x - mean) / sqrt(var + eps): an average token weighs the same in a long trajectory as in a short one."""
    whitened_N: Floats = (packed_N - packed_N.mean()) / math.sqrt(packed_N.var() + eps)
    return whitened_N


def _starts(lengths_T: Ints) -> Ints:
    starts: Ints = np.cumsum(lengths_T) - lengths_T
    return starts


def _check(step_rewards: Sequence[Floats], step_lengths: Sequence[Ints], values_N: Floats, kl_N: Floats) -> None:
    if len(step_rewards) != len(step_lengths):
        raise ValueError(
            "expected rewards and step lengths of the same trajectories, got "
            f"{len(step_rewards)} of the one and {len(step_lengths)} of the other"
        )
    for b, (rewards_T, lengths_T) in enumerate(zip(step_rewards, step_lengths, strict=True)):
        if (lengths_T < 1).any():
            raise ValueError(f"trajectory {b}: each step needs an action token, got lengths {lengths_T.tolist()}")
        _expect(f"trajectory {b}: step_rewards_T", rewards_T, len(lengths_T), "steps")
        if not np.isfinite(rewards_T).all():
            raise ValueError(
                f"trajectory {b}: step rewards must be finite, got {rewards_T.tolist()}; leave out trajectories with a "
                "missing score"
            )
    tokens = int(sum(lengths_T.sum() for lengths_T in step_lengths))
    _expect("values_N", values_N, tokens, "action tokens")
    _expect("kl_N", kl_N, tokens, "action tokens")


def _expect(name: str, array: Floats, size: int, unit: str) -> None:
    if array.shape != (size,):
        raise ValueError(f"{name} should have shape ({size},) for {size} {unit}, has {array.shape}")
