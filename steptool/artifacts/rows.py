"""Between the domain types and the rows of the Parquet contracts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steptool.artifacts.contracts import QUERIES, TRAJECTORIES, Cost, Row, iter_rows, write_rows
from steptool.records import Query, Step, StepStatus, StopReason, ToolCall, Trajectory

_text = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
"""What json.dumps writes, in three quarters of its time."""


def query_row(query: Query) -> Row:
    """A query as a row of `queries`."""
    return {
        "query_id": query.query_id,
        "split": query.split,
        "environment": query.environment,
        "instruction": query.instruction,
        "tools": _text(query.tools),
        "reference": _text(query.reference),
        "source": query.source,
        "tier": query.tier,
        "max_steps": query.max_steps,
    }


def query_from(row: Mapping[str, Any]) -> Query:
    """A row of `queries` as a query."""
    return Query(**{**row, "tools": tuple(json.loads(row["tools"])), "reference": json.loads(row["reference"])})


def trajectory_row(t: Trajectory) -> Row:
    """A trajectory as a row of `trajectories`."""
    return {
        "trajectory_id": t.trajectory_id,
        "query_id": t.query_id,
        "environment": t.environment,
        "tier": t.tier,
        "policy": t.policy,
        "round": t.round,
        "sample": t.sample,
        "temperature": t.temperature,
        "messages": _text(list(t.messages)),
        "input_ids": t.input_ids,
        "spans": [{"start": start, "end": end} for start, end in t.spans],
        "logprobs": t.logprobs,
        "steps": [_step_row(s) for s in t.steps],
        "stop_reason": str(t.stop_reason),
        "final_answer": t.final_answer,
        "solved": t.solved,
        "seconds": t.seconds,
        "abandoned_turns": t.abandoned_turns,
        "abandoned_tokens": t.abandoned_tokens,
    }


def _step_row(step: Step) -> Row:
    return {
        "call_name": step.call.name if step.call else None,
        "call_arguments": _text(dict(step.call.arguments)) if step.call else None,
        "status": str(step.status),
        "observation": step.observation,
    }


def trajectory_from(row: Mapping[str, Any]) -> Trajectory:
    """A row of `trajectories` as a trajectory."""
    return Trajectory(
        **{
            **row,
            "messages": json.loads(row["messages"]),
            "input_ids": np.asarray(row["input_ids"], dtype=np.int32),
            "spans": [(s["start"], s["end"]) for s in row["spans"]],
            "logprobs": np.asarray(row["logprobs"], dtype=np.float32),
            "steps": [_step_from(s) for s in row["steps"]],
            "stop_reason": StopReason(row["stop_reason"]),
        }
    )


def _step_from(row: Mapping[str, Any]) -> Step:
    call = None if row["call_name"] is None else ToolCall(row["call_name"], json.loads(row["call_arguments"]))
    return Step(call, StepStatus(row["status"]), row["observation"])


def read_queries(path: str | os.PathLike[str], split: str | None = None) -> list[Query]:
    """Queries of a file, of one split if it is given. Raises ValueError if there is none."""
    queries = [query_from(r) for r in iter_rows(path, QUERIES) if split is None or r["split"] == split]
    if not queries:
        raise ValueError(f"{path}: the split '{split}' is empty; every stage needs at least one query")
    return queries


def write_queries(path: str | os.PathLike[str], queries: Iterable[Query], cost: Cost | None = None) -> Path:
    """Write queries under their contract."""
    return write_rows(path, map(query_row, queries), QUERIES, cost)


def read_trajectories(path: str | os.PathLike[str]) -> list[Trajectory]:
    """Trajectories of a file."""
    return list(iter_trajectories(path))


def iter_trajectories(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Trajectories of a file, a few at a time in memory."""
    return (trajectory_from(r) for r in iter_rows(path, TRAJECTORIES, batch_size=64))


def write_trajectories(
    path: str | os.PathLike[str], trajectories: Sequence[Trajectory], cost: Cost | None = None
) -> Path:
    """Write trajectories under their contract."""
    return write_rows(path, map(trajectory_row, trajectories), TRAJECTORIES, cost)
