"""What is measured of an episode, and its summary over many."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from steptool.contracts.columns import Row
from steptool.evaluation.bootstrap import MEASURES, interval, per_query, resamples
from steptool.records import Query, Step, StepStatus, Trajectory
from steptool.rewards.rules import is_solved
from steptool.rollout.turns import TurnCost

ALL = "all"
"""Name of the group that holds every query."""

NOTHING_SPENT: Mapping[str, TurnCost] = {}
_Z95 = 1.959964
_VALID = frozenset({StepStatus.OK, StepStatus.FINISH})


def evaluate(
    queries: Iterable[Query],
    trajectories: Iterable[Trajectory],
    model: str,
    decoding: str,
    repeat: int = 0,
    spent: Mapping[str, TurnCost] = NOTHING_SPENT,
) -> list[Row]:
    """Rows of `evaluations`, one per trajectory. Raises ValueError for a trajectory whose query is not given.

    passed: the environment's verdict, or IsSolved by rule where it has none. calls: steps that are not a well-formed
    Finish; invalid_calls: those of them whose status is not OK, unreadable ones included; redundant_calls: see there.
    tokens: those sampled, abandoned branches of a search included; for trajectories in `spent`, by their id, those that
    the endpoint counted, with what it read and what that cost.
    """
    known = {q.query_id: q for q in queries}
    rows = []
    for t in trajectories:
        if t.query_id not in known:
            raise ValueError(
                f"trajectory '{t.trajectory_id}' answers the query '{t.query_id}', which is not among the "
                f"{len(known)} queries given; evaluate trajectories with the queries they were rolled out on"
            )
        made = {"model": model, "decoding": decoding, "repeat": repeat}
        rows.append({**_measures(known[t.query_id], t), **made, **_spent(t, spent.get(t.trajectory_id))})
    return rows


def _measures(query: Query, trajectory: Trajectory) -> Row:
    statuses = [step.status for step in trajectory.steps]
    return {
        "query_id": query.query_id,
        "split": query.split,
        "tier": query.tier,
        "trajectory_id": trajectory.trajectory_id,
        "passed": is_solved(query, trajectory) if trajectory.solved is None else trajectory.solved,
        "recall": tool_recall(query, trajectory),
        "steps": len(statuses),
        "calls": sum(status is not StepStatus.FINISH for status in statuses),
        "invalid_calls": sum(status not in _VALID for status in statuses),
        "redundant_calls": redundant_calls(trajectory.steps),
        "seconds": trajectory.seconds,
        "stop_reason": str(trajectory.stop_reason),
    }


def _spent(trajectory: Trajectory, spent: TurnCost | None) -> Row:
    if spent is None:
        return {"tokens": trajectory.sampled_tokens, "prompt_tokens": None, "money": None}
    return {"tokens": spent.completion_tokens, "prompt_tokens": spent.prompt_tokens, "money": spent.money}


def redundant_calls(steps: Sequence[Step]) -> int:
    """Number of calls that repeat an earlier one and bring nothing new.

    A call is redundant if an equal call (same tool, same arguments as JSON values) succeeded before and the last such
    call returned the same observation: whatever happened in between, this call has not seen it. Looking again after a
    change is not redundant, nor is trying again what failed. A tool that acts each time and always says the same
    ("added") counts as well: the text cannot tell.
    """
    seen: dict[str, str] = {}
    count = 0
    for step in steps:
        if step.call is not None and step.status is StepStatus.OK:
            key = json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True)
            count += seen.get(key) == step.observation
            seen[key] = step.observation
    return count


def tool_recall(query: Query, trajectory: Trajectory) -> float:
    """Share of the reference's tools that were called with success, in [0, 1]; 1 if there is nothing to recall.

    A tool that reference.calls lists twice has to be called twice; reference.tools is a set.
    """
    calls = query.reference.calls
    names = [call.name for call in calls] if calls is not None else set(query.reference.tools or ())
    wanted = Counter(names)
    if not wanted:
        return 1.0
    made = Counter(s.call.name for s in trajectory.steps if s.call is not None and s.status is StepStatus.OK)
    return (wanted & made).total() / wanted.total()


def summarise(rows: Sequence[Row], draws: int = 10_000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measures of one model and decoding by group (see `groups`).

    {group: {each of bootstrap.MEASURES: value, "n": queries, "intervals": {measure: [low, high]}}}; the intervals are
    95% bootstrap intervals over queries. Raises ValueError for no rows and for rows of several models or decodings.
    """
    sources = sorted({(row["model"], row["decoding"]) for row in rows})
    if len(sources) != 1:
        raise ValueError(f"a summary is of one model and one way of decoding; the {len(rows)} rows hold {sources}")
    return {group: _summary(part, draws, seed) for group, part in groups(rows).items()}


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by group: all, then each split and each tier where there are several."""
    found = {ALL: list(rows)} if rows else {}
    for column in ("split", "tier"):
        values = dict.fromkeys(r[column] for r in rows)
        if len(values) > 1:
            found |= {value or f"no {column}": [r for r in rows if r[column] == value] for value in values}
    return found


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


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share among n: sensible at 0 and 1 too."""
    centre = share + _Z95**2 / (2 * n)
    reach = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
