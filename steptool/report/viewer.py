"""Pairs of trajectories as plain data for the report's viewer, and their embedding in a script tag."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steptool.report.inputs import Example
from steptool.report.steps import episode_data

OUTCOMES = {
    "fixed": "fixed: only after training",
    "broken": "broken: only before training",
    "both": "both: solved before and after",
    "neither": "neither: solved by none",
    "unknown": "unknown: no verdict",
    "alone": "alone: one episode, no counterpart",
}
"""What training did to a task, by the verdicts before and after."""


def viewer_data(examples: Sequence[Example], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The examples as JSON-ready data, those that training changed first.

    Where an episode was scored but not trained on, its rewards are composed as the run's configuration says.
    """
    tasks = [_task(e, config or {}) for e in examples]
    order = list(OUTCOMES)
    return {"outcomes": OUTCOMES, "tasks": sorted(tasks, key=lambda t: order.index(t["outcome"]))}


def embed(data: Any) -> str:
    """JSON that may stand inside a script tag: no character of it can end the tag or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def outcome(example: Example) -> str:
    """One of OUTCOMES; a verdict above one half counts as solved."""
    if example.before is None or example.after is None:
        return "alone"
    before, after = example.before.verdict, example.after.verdict
    if before is None or after is None:
        return "unknown"
    solved = before > 0.5, after > 0.5
    return {(False, True): "fixed", (True, False): "broken", (True, True): "both"}.get(solved, "neither")


def _task(example: Example, config: Mapping[str, Any]) -> dict[str, Any]:
    answer = example.query.reference.get("answer")
    return {
        "id": example.query.query_id,
        "tier": example.query.tier,
        "instruction": example.query.instruction,
        "answer": answer if isinstance(answer, str) else None,
        "outcome": outcome(example),
        "before": episode_data(example.before, config) if example.before else None,
        "after": episode_data(example.after, config) if example.after else None,
    }
