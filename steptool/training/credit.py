"""From step rewards to advantages: pure arithmetic on action tokens packed end to end.

The tokens that a policy sampled are the only time steps. Prompt and observation tokens lie between them in the text but
not in time: the last token of step t is followed by the first token of step t + 1. Every function here therefore works
on packed arrays, from which prompt and observations are already gone; `step_lengths` leads from a trajectory's spans to
them.

Letters of shapes: L tokens of a trajectory, T its steps, N its action tokens; B trajectories with S steps in all.
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
    """What each action token of a trajectory is worth.

    `advantages_N` are not whitened; `returns_N` = advantages + values are the targets of the value head, to be used
    where `value_mask_N` is true: everywhere for token-level credit, at the first token of each step for step-level.
    """

    advantages_N: Floats
    returns_N: Floats
    value_mask_N: Bools


@dataclass(frozen=True)
class Moments:
    """Count, mean and population variance of a set of numbers; `+` gives those of the union of two sets."""

    count: int
    mean: float
    var: float

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        spread = self.count * self.var + other.count * other.var + gap**2 * self.count * other.count / count
        return Moments(count, mean, spread / count)


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


def advantages(
    step_rewards_T: Floats, step_lengths_T: Ints, values_N: Floats, kl_N: Floats, kl_coef: float, config: CreditConfig
) -> Credit:
    """Credit of one trajectory.

    step_rewards_T [T]: composed reward of each step. step_lengths_T [T]: its action tokens (at least 1).
    values_N [N]: value before each action token. kl_N [N]: log pi - log ref of each action token (nats), which costs
    `kl_coef` per nat. Raises ValueError for arrays that do not fit each other and for rewards that are not finite.
    """
    return advantages_batch([step_rewards_T], [step_lengths_T], [values_N], [kl_N], kl_coef, config)[0]


def advantages_batch(
    step_rewards: Sequence[Floats],
    step_lengths: Sequence[Ints],
    values: Sequence[Floats],
    kl: Sequence[Floats],
    kl_coef: float,
    config: CreditConfig,
) -> list[Credit]:
    """Credit of each of B trajectories, computed at once; the arguments are those of `advantages`, in lists of B."""
    if not len(step_rewards) == len(step_lengths) == len(values) == len(kl):
        raise ValueError(
            "expected one array per trajectory in each list, got "
            f"{len(step_rewards)} rewards, {len(step_lengths)} lengths, {len(values)} values, {len(kl)} kl"
        )
    if not step_rewards:
        return []
    for b, arrays in enumerate(zip(step_rewards, step_lengths, values, kl, strict=True)):
        _check(b, *arrays)
    credit = _packed(
        np.concatenate(step_rewards),
        np.concatenate(step_lengths),
        np.concatenate(values),
        np.concatenate(kl),
        steps_B=np.array([len(x) for x in step_lengths]),
        tokens_B=np.array([len(x) for x in values]),
        kl_coef=kl_coef,
        config=config,
    )
    cuts = np.cumsum([len(x) for x in values])[:-1]
    parts = (np.split(x, cuts) for x in (credit.advantages_N, credit.returns_N, credit.value_mask_N))
    return [Credit(*part) for part in zip(*parts, strict=True)]


def _packed(
    rewards_S: Floats,
    lengths_S: Ints,
    values_N: Floats,
    kl_N: Floats,
    *,
    steps_B: Ints,
    tokens_B: Ints,
    kl_coef: float,
    config: CreditConfig,
) -> Credit:
    rewards_N = token_rewards(rewards_S, lengths_S, kl_N, kl_coef)
    if config.level == "token":
        adv_N = gae(rewards_N, values_N, tokens_B, config.gamma, config.lam)
        return Credit(adv_N, adv_N + values_N, np.ones(len(adv_N), dtype=np.bool_))
    # One time step per assistant step: its value stands at its first token, its reward holds its tokens' KL penalties.
    values_S = first_of_step(values_N, lengths_S)
    adv_S = gae(sum_by_step(rewards_N, lengths_S), values_S, steps_B, config.gamma, config.lam)
    mask_N = np.zeros(len(values_N), dtype=np.bool_)
    mask_N[_starts(lengths_S)] = True
    return Credit(np.repeat(adv_S, lengths_S), np.repeat(adv_S + values_S, lengths_S), mask_N)


def moments(packed: Sequence[Floats]) -> Moments:
    """Moments over the concatenation of all trajectories' numbers; processes add theirs up before whitening."""
    joined = np.concatenate([np.zeros(0), *packed])
    return Moments(joined.size, float(joined.mean()), float(joined.var())) if joined.size else Moments(0, 0.0, 0.0)


def whiten(packed: Sequence[Floats], of: Moments | None = None, eps: float = 1e-8) -> tuple[list[Floats], Moments]:
    """(x - mean) / sqrt(var + eps) for each trajectory's numbers, and the moments that were used.

    Mean and variance are those of all action tokens of all trajectories (an average token weighs the same in a long
    trajectory as in a short one), or `of`, where other processes hold a part of them.
    """
    used = moments(packed) if of is None else of
    scale = math.sqrt(used.var + eps)
    return [(x - used.mean) / scale for x in packed], used


def _starts(lengths_T: Ints) -> Ints:
    starts: Ints = np.cumsum(lengths_T) - lengths_T
    return starts


def _check(b: int, rewards_T: Floats, lengths_T: Ints, values_N: Floats, kl_N: Floats) -> None:
    where = f"trajectory {b} of the batch: "
    if (lengths_T < 1).any():
        raise ValueError(f"{where}each step needs at least one action token, got lengths {lengths_T.tolist()}")
    _expect(f"{where}step_rewards_T", rewards_T, len(lengths_T), "steps")
    tokens = int(lengths_T.sum())
    _expect(f"{where}values_N", values_N, tokens, "action tokens")
    _expect(f"{where}kl_N", kl_N, tokens, "action tokens")
    if not np.isfinite(rewards_T).all():
        raise ValueError(
            f"{where}step rewards must be finite, got {rewards_T.tolist()}; leave out trajectories with a missing score"
        )


def _expect(name: str, array: Floats, size: int, unit: str) -> None:
    if array.shape != (size,):
        raise ValueError(f"{name} should have shape ({size},) for {size} {unit}, has {array.shape}")
