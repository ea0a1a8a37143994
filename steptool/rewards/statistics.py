"""Figures about scores: agreement of two raters, separation of two classes, dependence on length, drift, farming.

Farming means that length alone is paid for. Everything here is arithmetic on arrays and records. A figure that its
data do not determine is None, never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steptool.artifacts.metrics import average_known
from steptool.records import Step, StepStatus, Trajectory

Floats = npt.NDArray[np.float64]

Z95 = 1.959964
_DISTINCT = 10
"""Most distinct values for which drift compares the values themselves. With more it compares bins of the reference."""
_LEAST = 1e-4
"""Share that an empty bin counts as in the stability index."""


@dataclass(frozen=True)
class Estimate:
    """A figure from n observations with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


def confusion(one_N: npt.ArrayLike, other_N: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Counts [2, 2] of the verdicts of two raters: rows by the first rater, columns by the other, no before yes."""
    pairs_N = 2 * np.asarray(one_N, dtype=bool) + np.asarray(other_N, dtype=bool)
    return np.bincount(pairs_N, minlength=4).reshape(2, 2)


def kappa(table_22: npt.NDArray[np.int64]) -> Estimate | None:
    """Cohen's kappa of a confusion table: (observed - expected agreement) / (1 - expected).

    It is 1 if the raters always agree, and 0 if they agree as often as by chance. The interval takes Cohen's
    large-sample error, sqrt(p_o (1 - p_o) / n) / (1 - p_e). None without observations and where both raters always say
    the same one thing.
    """
    n = int(table_22.sum())
    if n == 0:
        return None
    agreement = float(np.trace(table_22)) / n
    expected = float(table_22.sum(axis=1) @ table_22.sum(axis=0)) / n**2
    if expected >= 1:
        return None
    value = (agreement - expected) / (1 - expected)
    reach = Z95 * math.sqrt(agreement * (1 - agreement) / n) / (1 - expected)
    return Estimate(value, max(-1.0, value - reach), min(1.0, value + reach), n)


def auroc(scores_N: npt.ArrayLike, positive_N: npt.ArrayLike) -> Estimate | None:
    """Chance that a positive outscores a negative, ties counted half (the area under the ROC curve).

    The interval takes the error of Hanley and McNeil (1982). None unless there are positives and negatives.
    """
    scores, positive = np.asarray(scores_N, dtype=np.float64), np.asarray(positive_N, dtype=bool)
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        return None
    area = float((ranks(scores)[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))
    two_up, two_down = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (ups - 1) * (two_up - area**2) + (downs - 1) * (two_down - area**2)
    reach = Z95 * math.sqrt(max(0.0, variance) / (ups * downs))
    return Estimate(area, max(0.0, area - reach), min(1.0, area + reach), ups + downs)


def chance_auroc(positives: int, negatives: int) -> tuple[float, float]:
    """The AUROC's range in 95% of the cases for scores that say nothing (normal approximation of the rank test)."""
    deviation = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    return 0.5 - Z95 * deviation, 0.5 + Z95 * deviation


def ranks(values_N: Floats) -> Floats:
    """Ranks from 1. Equal values get the mean of their ranks."""
    _, place_N, counts_V = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts_V) - (counts_V - 1) / 2)[place_N]


def correlation(one_N: npt.ArrayLike, other_N: npt.ArrayLike) -> Estimate | None:
    """Pearson's correlation with Fisher's interval; None with less than four pairs or where either does not vary."""
    one, other = np.asarray(one_N, dtype=np.float64), np.asarray(other_N, dtype=np.float64)
    if len(one) < 4 or np.ptp(one) < 1e-9 or np.ptp(other) < 1e-9:
        return None
    value = float(np.clip(np.corrcoef(one, other)[0, 1], -1, 1))
    centre, reach = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12)), Z95 / math.sqrt(len(one) - 3)
    return Estimate(value, math.tanh(centre - reach), math.tanh(centre + reach), len(one))


def difference(before_N: npt.ArrayLike, after_M: npt.ArrayLike) -> Estimate | None:
    """Mean after minus mean before, with Welch's interval (normal approximation); None with less than two of either."""
    before, after = np.asarray(before_N, dtype=np.float64), np.asarray(after_M, dtype=np.float64)
    if min(len(before), len(after)) < 2:
        return None
    value = float(after.mean() - before.mean())
    reach = Z95 * math.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    return Estimate(value, value - reach, value + reach, len(after))


def stability_index(before_N: npt.ArrayLike, after_M: npt.ArrayLike) -> float | None:
    """Population stability index: sum over bins of (a - b) ln(a / b), with b and a the shares before and after.

    Bins are the values themselves where there are few, else the deciles of `before`. By custom a value under 0.1 is
    stable, and one over 0.25 is a shift. None where either is empty.
    """
    before, after = np.asarray(before_N, dtype=np.float64), np.asarray(after_M, dtype=np.float64)
    if not len(before) or not len(after):
        return None
    values = np.unique(np.concatenate([before, after]))
    inner = np.quantile(before, np.linspace(0.1, 0.9, 9)) if len(values) > _DISTINCT else (values[1:] + values[:-1]) / 2
    then, now = (_share_by_bin(part, inner) for part in (before, after))
    return float(np.sum((now - then) * np.log(now / then)))


def _share_by_bin(values: Floats, inner: Floats) -> Floats:
    counts = np.bincount(np.searchsorted(inner, values, side="right"), minlength=len(inner) + 1)
    return np.maximum(counts / len(values), _LEAST)


@dataclass(frozen=True)
class Bin:
    """Episodes of like size."""

    low: float
    high: float
    """Sizes that it holds, both included."""
    size: float
    """Mean size."""
    reward: Estimate


def bin_by_size(sizes_N: Sequence[float], rewards_N: Sequence[float], bins: int = 8) -> list[Bin]:
    """Mean reward of episodes in bins of like size: one size each where there are few sizes, else as many episodes."""
    sizes, rewards = np.asarray(sizes_N, dtype=np.float64), np.asarray(rewards_N, dtype=np.float64)
    values = np.unique(sizes)
    edges = values if len(values) <= bins else np.unique(np.quantile(sizes, np.linspace(0, 1, bins + 1)[:-1]))
    place_N = np.searchsorted(edges, sizes, side="right") - 1
    return [_make_bin(sizes[place_N == b], rewards[place_N == b]) for b in range(len(edges)) if np.any(place_N == b)]


def _make_bin(sizes: Floats, rewards: Floats) -> Bin:
    centre, n = float(rewards.mean()), len(rewards)
    reach = Z95 * float(rewards.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    spread = Estimate(centre, centre - reach, centre + reach, n)
    return Bin(float(sizes.min()), float(sizes.max()), float(sizes.mean()), spread)


def slope(sizes_N: Sequence[float], rewards_N: Sequence[float]) -> float | None:
    """Reward per further unit of size, by least squares; None where sizes do not vary."""
    sizes, rewards = np.asarray(sizes_N, dtype=np.float64), np.asarray(rewards_N, dtype=np.float64)
    if len(sizes) < 2 or np.ptp(sizes) < 1e-9:
        return None
    centred_sizes = sizes - sizes.mean()
    return float(centred_sizes @ (rewards - rewards.mean()) / (centred_sizes @ centred_sizes))


Rewards = npt.NDArray[np.float64]
"""Composed rewards of the steps of one trajectory, [T]."""


@dataclass(frozen=True)
class FarmingPoint:
    """One episode in the farming check."""

    steps: int
    tokens: int
    """Sampled tokens."""
    reward: float
    """Sum of the composed rewards of the steps before the last: the part that extra calls could collect."""
    solved: float | None
    """The environment's verdict."""


@dataclass(frozen=True)
class Farming:
    """How the rewards before the last step, summed, depend on the size of the episode."""

    size: str
    """steps, or sampled tokens."""
    correlation: Estimate | None
    slope: float | None
    """Reward for each further step or token."""
    bins: Sequence[Bin]


@dataclass(frozen=True)
class Redundancy:
    """Calls that repeat an earlier one and bring nothing new, and what they earn."""

    calls: int
    """All calls of episodes with composed rewards, without Finish."""
    redundant: int
    reward: float | None
    """Mean composed reward of a redundant call before the last step; None without such calls."""


def find_redundant_steps(steps: Sequence[Step]) -> list[bool]:
    """Whether each step [T] repeats an earlier call and brings nothing new.

    A call is redundant if an equal call (same tool, same arguments as JSON values) succeeded before and the last such
    call returned the same observation. A second look after a change is not redundant, and neither is a second try after
    a failure. A tool that acts each time and always returns the same text ("added") counts as redundant, since the text
    does not show the difference.
    """
    observations: dict[str, str] = {}
    redundant = []
    for step in steps:
        repeats = False
        if step.call is not None and step.status is StepStatus.OK:
            key = json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True)
            repeats = observations.get(key) == step.observation
            observations[key] = step.observation
        redundant.append(repeats)
    return redundant


def measure_redundancy(trajectories: Sequence[Trajectory], step_rewards: Sequence[Rewards | None]) -> Redundancy:
    """How many calls are redundant, and their mean reward. Raises ValueError if the lengths differ."""
    calls = redundant = 0
    repeat_rewards: list[float] = []
    for t, rewards in zip(trajectories, step_rewards, strict=True):
        if rewards is not None:
            repeats = find_redundant_steps(t.steps)
            calls += sum(step.status is not StepStatus.FINISH for step in t.steps)
            redundant += sum(repeats)
            repeat_rewards += [float(r) for r, repeat in zip(rewards[:-1], repeats, strict=False) if repeat]
    return Redundancy(calls, redundant, average_known(repeat_rewards))


def collect_farming_points(
    trajectories: Sequence[Trajectory], step_rewards: Sequence[Rewards | None]
) -> list[FarmingPoint]:
    """One point for each episode that has a composed reward. Raises ValueError if the lengths differ."""
    return [
        FarmingPoint(len(t.steps), t.action_tokens, float(np.sum(r[:-1])), t.solved)
        for t, r in zip(trajectories, step_rewards, strict=True)
        if r is not None
    ]


def measure_farming(points: Sequence[FarmingPoint]) -> list[Farming]:
    """Rewards against the number of steps, and against the number of tokens."""
    rewards = [p.reward for p in points]
    sizes = {"steps": [float(p.steps) for p in points], "tokens": [float(p.tokens) for p in points]}
    return [
        Farming(name, correlation(values, rewards), slope(values, rewards), bin_by_size(values, rewards))
        for name, values in sizes.items()
    ]


def idle_share(contributions: Iterable[float | None]) -> float | None:
    """Share of the calls with a Contribution of 0, among those that have one; None without such calls."""
    present = [c for c in contributions if c is not None]
    return sum(c == 0 for c in present) / len(present) if present else None
