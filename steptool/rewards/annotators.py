"""Annotation of trajectories, and the annotators that are known by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from steptool.artifacts.contracts import Row
from steptool.config import JudgeConfig
from steptool.judge.score import Annotator, StepScore, Waiting
from steptool.judge.transcript import plain
from steptool.records import Query, Trajectory
from steptool.rewards.rules import DataFlowRules, OverlapRules
from steptool.rewards.truth import Truth
from steptool.storage.threads import in_order

__all__ = ["ANNOTATORS", "Annotator", "StepScore", "annotate", "annotator", "counts_of", "opened", "score_steps"]

ANNOTATORS: Mapping[str, Callable[[], Annotator]] = {"rules": DataFlowRules, "lcs": OverlapRules, "truth": Truth}
"""Annotators by the name that a configuration uses, but for "judge", which takes a configuration of its own."""


def annotator(name: str, judge: JudgeConfig | None = None) -> Annotator:
    """The annotator of this name. Raises ValueError listing the known names, and for a judge without an endpoint."""
    if name == "judge":
        from steptool.judge.step_judge import Judge  # the client takes half a second to import

        return Judge(judge or JudgeConfig())
    if name not in ANNOTATORS:
        raise ValueError(f"unknown annotator '{name}': expected one of judge, {', '.join(sorted(ANNOTATORS))}")
    return ANNOTATORS[name]()


@contextmanager
def opened(name: str, judge: JudgeConfig | None = None) -> Iterator[Annotator]:
    """The annotator of this name, closed at the end if it holds anything open."""
    chosen = annotator(name, judge)
    try:
        yield chosen
    finally:
        if isinstance(chosen, Waiting):
            chosen.close()


def counts_of(annotator: Annotator) -> dict[str, float]:
    """What an annotator that waits for others asked and spent until now; empty for one that does not."""
    return annotator.counts() if isinstance(annotator, Waiting) else {}


def annotate(queries: Iterable[Query], trajectories: Iterable[Trajectory], annotator: Annotator) -> list[Row]:
    """Rows of `rewards`: one per step of each trajectory, in order.

    Raises ValueError for a trajectory whose query is not among `queries` and for an annotator that skips a step.
    """
    return list(score_steps({q.query_id: q for q in queries}, trajectories, annotator))


def score_steps(
    queries: Mapping[str, Query], trajectories: Iterable[Trajectory], annotator: Annotator
) -> Iterator[Row]:
    """The same as a stream: a trajectory is taken when the rows of the one before are gone.

    An annotator that waits gets several at once; some more are then taken ahead.
    """
    if isinstance(annotator, Waiting):
        scored = in_order(lambda t: _rows(queries, t, annotator), trajectories, annotator.concurrency)
    else:
        scored = (_rows(queries, t, annotator) for t in trajectories)
    return (row for rows in scored for row in rows)


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
        "votes": plain(json.dumps(dict(score.votes), ensure_ascii=False)),
        "rationale": plain(score.rationale),
    }
