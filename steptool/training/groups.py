"""Groups: the tries at one query, the steps that were taken in one state, and statistics within them.

Two steps of a round are in the same state where their queries are equal and, besides, what `credit.state` names. The
calls so far name the state of any environment that does the same after the same calls. The last observation names it
where the environment shows its whole state, as a game does, whatever led there: these are the anchor states of GiGPO
(Feng et al. 2025, arXiv 2505.10978). The digest is the environment's own name of its state: it is equal after changes
that commute, and calls that only read leave it as it is.

Letters of shapes: B trajectories with S steps in all; X is either of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from steptool.records import Step, Trajectory

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
StateName = Literal["calls", "observation", "digest"]
_EPS = 1e-6
"""Added to the deviation of a group, as in GRPO."""


@dataclass(frozen=True)
class Groups:
    """What belongs together among the trajectories of a round. Equal numbers mean the same group."""

    queries_B: Ints
    """The query of each trajectory."""
    query_of_S: Ints
    """The query of each step, trajectory after trajectory."""
    states_S: Ints
    """The state before each step."""


def group_trajectories(trajectories: Sequence[Trajectory], state: StateName = "calls") -> Groups:
    """Number the queries of trajectories and the states before their steps, named as `state` says.

    Raises ValueError for `digest` where a step has none.
    """
    states = _STATES[state]
    queries_B = _number(t.query_id for t in trajectories)
    steps_B = [len(t.steps) for t in trajectories]
    states_S = _number(key for t in trajectories for key in states(t))
    return Groups(queries_B, np.repeat(queries_B, steps_B), states_S)


def compute_group_means(values_X: Floats, groups_X: Ints) -> Floats:
    """The mean of its group, for each value."""
    counts = np.bincount(groups_X)
    means: Floats = np.bincount(groups_X, weights=values_X)[groups_X] / counts[groups_X]
    return means


def count_group_sizes(groups_X: Ints) -> Ints:
    """The number of values in its group, for each value."""
    sizes: Ints = np.bincount(groups_X)[groups_X]
    return sizes


def compare_with_group(values_X: Floats, groups_X: Ints, scale: bool) -> Floats:
    """x - mean of the group and, with `scale`, that divided by the deviation of the group (1e-6 added).

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2); without the division Dr. GRPO (Liu et al.
    2025, arXiv 2503.20783). A value alone in its group, or equal to all others of it, gets 0.
    """
    gaps_X = values_X - compute_group_means(values_X, groups_X)
    if not scale:
        return gaps_X
    deviations_X = np.sqrt(compute_group_means(gaps_X**2, groups_X))
    scaled: Floats = gaps_X / (deviations_X + _EPS)
    return scaled


def state_values(returns_S: Floats, groups: Groups) -> Floats:
    """The value of the state before each step: the mean return of the steps that were taken in it.

    A state in which one step alone was taken would explain its own return; it gets the mean over all steps of its
    query.
    """
    by_state_S, by_query_S = (compute_group_means(returns_S, g) for g in (groups.states_S, groups.query_of_S))
    values_S: Floats = np.where(count_group_sizes(groups.states_S) > 1, by_state_S, by_query_S)
    return values_S


def _states_by_observation(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """The query and the last observation, before each step; the first step has none."""
    observations = ["", *(step.observation for step in trajectory.steps[:-1])]
    yield from ((trajectory.query_id, observation) for observation in observations[: len(trajectory.steps)])


def _states_by_calls(trajectory: Trajectory) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The query and the calls so far, before each step."""
    calls: list[str] = []
    for step in trajectory.steps:
        yield trajectory.query_id, tuple(calls)
        calls.append(_call_key(step))


def _states_by_digest(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """The query and the environment's own digest, before each step."""
    for number, step in enumerate(trajectory.steps, start=1):
        if step.state is None:
            raise ValueError(
                f"credit.state: digest: step {number} of {trajectory.trajectory_id} has no digest of the environment's "
                "state; play the round with this setting, or set credit.state to calls"
            )
        yield trajectory.query_id, step.state


_STATES: dict[StateName, Callable[[Trajectory], Iterator[Hashable]]] = {
    "calls": _states_by_calls,
    "observation": _states_by_observation,
    "digest": _states_by_digest,
}


def _call_key(step: Step) -> str:
    """A call as text that does not depend on the order of its arguments; all texts that are no call are alike."""
    if step.call is None:
        return str(step.status)
    return json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True)


def _number(keys: Iterable[Hashable]) -> Ints:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
