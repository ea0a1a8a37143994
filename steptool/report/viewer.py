"""Pairs of trajectories as plain data for the page's viewer, and their embedding in a script tag."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steptool.config import RewardConfig
from steptool.contracts import Row
from steptool.report.inputs import Episode, Example
from steptool.rewards.compose import compose
from steptool.trajectory import Step

LONGEST = 6000
"""Characters of an observation that the page keeps."""
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
        "before": _episode(example.before, config),
        "after": _episode(example.after, config),
    }


def _episode(episode: Episode | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    if episode is None:
        return None
    trajectory = episode.trajectory
    rewards: dict[int, Row] = {r["step"]: r for r in episode.rewards if r["trajectory_id"] == trajectory.trajectory_id}
    advantages: dict[int, Row] = {
        r["step"]: r for r in episode.advantages if r["trajectory_id"] == trajectory.trajectory_id
    }
    if not advantages:
        composed = _composed(list(rewards.values()), len(trajectory.steps), config)
        advantages = {i: {"reward": r} for i, r in enumerate(composed)}
    steps = [_step(s, rewards.get(i, {}), advantages.get(i, {})) for i, s in enumerate(trajectory.steps)]
    return {
        "verdict": _finite(episode.verdict),
        "origin": f"training, round {trajectory.round}" if trajectory.round >= 0 else "evaluation",
        "stop": str(trajectory.stop_reason),
        "answer": trajectory.final_answer,
        "tokens": trajectory.action_tokens,
        "steps": steps,
    }


def _composed(rewards: Sequence[Row], steps: int, config: Mapping[str, Any]) -> Sequence[float]:
    if len(rewards) != steps or "rewards" not in config:
        return ()
    reward = (config.get("ppo") or {}).get("reward", "step")
    composed = compose(rewards, RewardConfig.model_validate(config["rewards"]), reward)
    return () if composed is None else composed.tolist()


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
