"""What is measured of an episode, and its summary over many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from steptool.contracts import Row
from steptool.evaluation.bootstrap import MEASURES, interval, per_query, resamples
from steptool.rewards.rules import is_solved
from steptool.trajectory import Query, StepStatus, Trajectory

ALL = "all"
"""Name of the summary over all tiers."""

_VALID = frozenset({StepStatus.OK, StepStatus.FINISH})


def evaluate(
    queries: Iterable[Query],
    trajectories: Iterable[Trajectory],
    model: str,
    decoding: Literal["greedy", "sampled"],
    repeat: int = 0,
) -> list[Row]:
    """Rows of `evaluations`, one per trajectory. Raises ValueError for a trajectory whose query is not given.

    passed: the environment's verdict, or IsSolved by rule where it has none. calls: steps that are not a well-formed
    Finish; invalid_calls: those of them whose status is not OK, unreadable ones included. tokens: those sampled.
    """
    known = {q.query_id: q for q in queries}
    rows = []
    for t in trajectories:
        if t.query_id not in known:
            raise ValueError(
                f"trajectory '{t.trajectory_id}' answers the query '{t.query_id}', which is not among the "
                f"{len(known)} queries given; evaluate trajectories with the queries they were rolled out on"
            )
        rows.append({**_measures(known[t.query_id], t), "model": model, "decoding": decoding, "repeat": repeat})
    return rows


def _measures(query: Query, trajectory: Trajectory) -> Row:
    statuses = [step.status for step in trajectory.steps]
    return {
        "query_id": query.query_id,
        "tier": query.tier,
        "trajectory_id": trajectory.trajectory_id,
        "passed": is_solved(query, trajectory) if trajectory.solved is None else trajectory.solved,
        "recall": tool_recall(query, trajectory),
        "steps": len(statuses),
        "calls": sum(status is not StepStatus.FINISH for status in statuses),
        "invalid_calls": sum(status not in _VALID for status in statuses),
        "tokens": trajectory.action_tokens,
        "seconds": trajectory.seconds,
        "stop_reason": str(trajectory.stop_reason),
    }


def tool_recall(query: Query, trajectory: Trajectory) -> float:
    """Share of the reference's tools that were called with success, in [0, 1]; 1 if there is nothing to recall.

    A tool that reference["calls"] lists twice has to be called twice; reference["tools"] is a set.
    """
    calls = query.reference.get("calls")
    names = [c["name"] for c in calls] if calls is not None else set(query.reference.get("tools") or ())
    wanted = Counter(names)
    if not wanted:
        return 1.0
    made = Counter(s.call.name for s in trajectory.steps if s.call is not None and s.status is StepStatus.OK)
    return (wanted & made).total() / wanted.total()


def summarise(rows: Sequence[Row], draws: int = 10_000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measures of one model and decoding, over all queries ("all") and by tier.

    {tier: {each of bootstrap.MEASURES: value, "n": queries, "intervals": {measure: [low, high]}}}; the intervals are
    95% bootstrap intervals over queries. Raises ValueError for no rows and for rows of several models or decodings.
    """
    sources = sorted({(row["model"], row["decoding"]) for row in rows})
    if len(sources) != 1:
        raise ValueError(f"a summary is of one model and one way of decoding; the {len(rows)} rows hold {sources}")
    tiers: Mapping[str, Sequence[Row]] = {
        ALL: rows,
        **{tier: [r for r in rows if r["tier"] == tier] for tier in sorted({r["tier"] for r in rows} - {"", ALL})},
    }
    return {tier: _summary(part, draws, seed) for tier, part in tiers.items()}


def _summary(rows: Sequence[Row], draws: int, seed: int) -> dict[str, Any]:
    parts = {measure: per_query(rows, measure) for measure in MEASURES}
    queries = len(parts["pass_rate"].queries)
    resampled = [[part.resampled(counts) for part in parts.values()] for counts in resamples(queries, draws, seed)]
    intervals = [interval(np.concatenate(chunks)) for chunks in zip(*resampled, strict=True)]
    return {
        **{measure: part.estimate() for measure, part in parts.items()},
        "n": queries,
        "intervals": {measure: list(bounds) for measure, bounds in zip(parts, intervals, strict=True)},
    }
