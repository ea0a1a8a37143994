"""Whether length alone is paid for: rewards against the size of episodes, and calls that add nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steptool.records import Step, StepStatus, Trajectory
from steptool.rewards.agreement import Bin, Estimate, by_size, correlation, slope

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


def redundant_steps(steps: Sequence[Step]) -> list[bool]:
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
    earned: list[float] = []
    for t, rewards in zip(trajectories, step_rewards, strict=True):
        if rewards is not None:
            repeats = redundant_steps(t.steps)
            calls += sum(step.status is not StepStatus.FINISH for step in t.steps)
            redundant += sum(repeats)
            earned += [float(r) for r, repeat in zip(rewards[:-1], repeats, strict=False) if repeat]
    return Redundancy(calls, redundant, sum(earned) / len(earned) if earned else None)


def farming_points(trajectories: Sequence[Trajectory], step_rewards: Sequence[Rewards | None]) -> list[FarmingPoint]:
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
        Farming(name, correlation(values, rewards), slope(values, rewards), by_size(values, rewards))
        for name, values in sizes.items()
    ]


def idle_share(contributions: Iterable[float | None]) -> float | None:
    """Share of the calls with a Contribution of 0, among those that have one; None without such calls."""
    present = [c for c in contributions if c is not None]
    return sum(c == 0 for c in present) / len(present) if present else None
