"""What a final answer is worth by rule: against the reference answer, or by how it opens."""

from __future__ import annotations

import re

from steptool.records import Query, StopReason, Trajectory
from steptool.rewards.observations import normalise, parse

UNSURE = 0.5
"""IsSolved of an answer that nothing can check."""

_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|apologies|as an ai|unfortunately|(i|we)('m| am| are|'re| was| were)? ?(unable|not able) to|"
    r"(i|we) (cannot|can't|can not|could not|couldn't|do not have|don't have|failed to))\b",
    re.I,
)
_OPENING = 120
"""Characters of an answer in which a refusal shows."""


def is_solved(query: Query, trajectory: Trajectory) -> float:
    """IsSolved by rule, in {0, 0.5, 1}.

    0 without a Finish, after giving up, and for an empty answer. With a reference answer as `matches_reference` says.
    Without one 0 for an answer that opens with an apology or a refusal, else 0.5. An episode that the environment has
    ended needs no answer: 0.5.
    """
    matches = matches_reference(query, trajectory)
    if matches is not None:
        return matches
    if trajectory.stop_reason is StopReason.ENDED:
        return UNSURE
    answer = _given_answer(trajectory)
    return 0.0 if not answer or _REFUSAL.search(answer[:_OPENING]) else UNSURE


def matches_reference(query: Query, trajectory: Trajectory) -> float | None:
    """1 if the final answer equals the reference answer, else 0; None for a query without one, or with an empty one.

    Two answers are equal if they are the same text after normalisation (case, spaces, numbers written alike, marks at
    the end), or the same JSON value. JSON values compare by type: 1 equals 1.0, but neither true nor "1".
    """
    expected = query.reference.answer
    if not expected:
        return None
    answer = _given_answer(trajectory)
    if not answer:
        return 0.0
    return float(_plain(answer) == _plain(expected) or same_json(parse(answer), parse(expected)))


def same_json(one: object, other: object) -> bool:
    """Whether two parsed JSON values are equal in value and type; an integer equals the same number with a point."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same_json(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _given_answer(trajectory: Trajectory) -> str:
    """The final answer; empty where the episode ended without one."""
    return (trajectory.final_answer or "").strip() if trajectory.stop_reason is StopReason.FINISHED else ""


def _plain(answer: str) -> str:
    return normalise(answer).strip(" .!\"'")
