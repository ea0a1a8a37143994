"""Annotation of trajectories, and the annotators that are known by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from steptool.contracts import Row
from steptool.rewards.rules import DataFlowRules, OverlapRules
from steptool.rewards.score import Annotator, StepScore
from steptool.rewards.truth import Truth
from steptool.trajectory import Query, Trajectory

__all__ = ["ANNOTATORS", "Annotator", "StepScore", "annotate", "annotator"]

ANNOTATORS: Mapping[str, Callable[[], Annotator]] = {"rules": DataFlowRules, "lcs": OverlapRules, "truth": Truth}
"""Annotators by the name that a configuration uses."""


def annotator(name: str) -> Annotator:
    """The annotator of this name. Raises ValueError listing the known names."""
    if name not in ANNOTATORS:
        raise ValueError(f"unknown annotator '{name}': expected one of {', '.join(sorted(ANNOTATORS))}")
    return ANNOTATORS[name]()


def annotate(queries: Iterable[Query], trajectories: Iterable[Trajectory], annotator: Annotator) -> list[Row]:
    """Rows of `rewards`: one per step of each trajectory, in order.

    Raises ValueError for a trajectory whose query is not among `queries` and for an annotator that skips a step.
    """
    known = {q.query_id: q for q in queries}
    return [row for t in trajectories for row in _rows(known, t, annotator)]


def _rows(known: Mapping[str, Query], trajectory: Trajectory, annotator: Annotator) -> list[Row]:
    if trajectory.query_id not in known:
        raise ValueError(
            f"trajectory '{trajectory.trajectory_id}' answers the query '{trajectory.query_id}', which is not "
            f"among the {len(known)} queries given; annotate trajectories with the queries they were rolled out on"
        )
    scores = annotator.annotate(known[trajectory.query_id], trajectory)
    if len(scores) != len(trajectory.steps):
        raise ValueError(
            f"annotator '{annotator.name}' gave {len(scores)} scores for the {len(trajectory.steps)} steps of "
            f"trajectory '{trajectory.trajectory_id}'; one per step was expected"
        )
    return [_row(trajectory, number, score, annotator) for number, score in enumerate(scores)]


def _row(trajectory: Trajectory, number: int, score: StepScore, annotator: Annotator) -> Row:
    return {
        "trajectory_id": trajectory.trajectory_id,
        "step": number,
        "annotator": annotator.name,
        "annotator_version": annotator.version,
        "prompt_hash": annotator.prompt_hash,
        "succ_calling": score.succ_calling,
        "contribution": score.contribution,
        "is_solved": score.is_solved,
        "votes": _utf8(json.dumps(dict(score.votes), ensure_ascii=False)),
        "rationale": _utf8(score.rationale),
    }


def _utf8(text: str) -> str:
    """Text without lone surrogates, which tools may return and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
