"""Pairs of trajectories as plain data for the page's viewer, and their embedding in a script tag."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steptool.contracts import Row
from steptool.report.inputs import Episode, Example
from steptool.trajectory import Step

LONGEST = 6000
"""Characters of an observation that the page keeps."""
OUTCOMES = {
    "fixed": "fixed: only after training",
    "broken": "broken: only before training",
    "both": "both: solved before and after",
    "neither": "neither: solved by none",
    "unknown": "unknown: no verdict",
}
"""What training did to a task, by the verdicts before and after."""


def viewer_data(examples: Sequence[Example]) -> dict[str, Any]:
    """The examples as JSON-ready data, those that training changed first."""
    tasks = [_task(e) for e in examples]
    order = list(OUTCOMES)
    return {"outcomes": OUTCOMES, "tasks": sorted(tasks, key=lambda t: order.index(t["outcome"]))}


def embed(data: Any) -> str:
    """JSON that may stand inside a script tag: no character of it can end the tag or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def outcome(example: Example) -> str:
    """One of OUTCOMES; a verdict above one half counts as solved."""
    verdicts = [e.verdict if e else None for e in (example.before, example.after)]
    if verdicts[0] is None or verdicts[1] is None:
        return "unknown"
    solved = verdicts[0] > 0.5, verdicts[1] > 0.5
    return {(False, True): "fixed", (True, False): "broken", (True, True): "both"}.get(solved, "neither")


def _task(example: Example) -> dict[str, Any]:
    answer = example.query.reference.get("answer")
    return {
        "id": example.query.query_id,
        "tier": example.query.tier,
        "instruction": example.query.instruction,
        "answer": answer if isinstance(answer, str) else None,
        "outcome": outcome(example),
        "before": _episode(example.before),
        "after": _episode(example.after),
    }


def _episode(episode: Episode | None) -> dict[str, Any] | None:
    if episode is None:
        return None
    trajectory = episode.trajectory
    rewards = {r["step"]: r for r in episode.rewards if r["trajectory_id"] == trajectory.trajectory_id}
    advantages = {r["step"]: r for r in episode.advantages if r["trajectory_id"] == trajectory.trajectory_id}
    steps = [_step(s, rewards.get(i, {}), advantages.get(i, {})) for i, s in enumerate(trajectory.steps)]
    return {
        "verdict": _finite(episode.verdict),
        "origin": f"training, round {trajectory.round}" if trajectory.round >= 0 else "evaluation",
        "stop": str(trajectory.stop_reason),
        "answer": trajectory.final_answer,
        "tokens": trajectory.action_tokens,
        "steps": steps,
    }


def _step(step: Step, reward: Mapping[str, Any], advantage: Mapping[str, Any]) -> Row:
    arguments = step.call.arguments if step.call else {}
    return {
        "call": step.call.name if step.call else None,
        "arguments": [[str(k), v if isinstance(v, str) else json.dumps(v)] for k, v in arguments.items()],
        "status": str(step.status),
        "observation": step.observation[:LONGEST],
        "cut": max(0, len(step.observation) - LONGEST),
        "rationale": str(reward.get("rationale") or "")[:LONGEST],
        **{name: _finite(reward.get(name)) for name in ("succ_calling", "contribution", "is_solved")},
        **{name: _finite(advantage.get(name)) for name in ("reward", "value", "advantage")},
    }


def _finite(value: Any) -> float | None:
    return round(float(value), 4) if value is not None and math.isfinite(value) else None
