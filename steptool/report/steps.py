"""Episodes and their steps as plain data for the pages (steps.js renders them)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steptool.artifacts.contracts import Row
from steptool.config import RewardConfig
from steptool.records import Step, Trajectory
from steptool.report.inputs import Episode
from steptool.rewards.compose import compose

LONGEST = 6000
"""Characters of an observation that a page keeps."""


def episode_data(episode: Episode, config: Mapping[str, Any]) -> Row:
    """An episode with its steps and their scores. A score that is missing is None.

    Without advantages the rewards are composed from the scores as `config` says (its section `rewards`), if it does.
    """
    trajectory = episode.trajectory
    rewards: dict[int, Row] = {r["step"]: r for r in episode.rewards if r["trajectory_id"] == trajectory.trajectory_id}
    advantages: dict[int, Row] = {
        r["step"]: r for r in episode.advantages if r["trajectory_id"] == trajectory.trajectory_id
    }
    if not advantages:
        composed = _composed(list(rewards.values()), len(trajectory.steps), config)
        advantages = {i: {"reward": r} for i, r in enumerate(composed)}
    said = _said(trajectory)
    steps = [_step(s, said[i], rewards.get(i, {}), advantages.get(i, {})) for i, s in enumerate(trajectory.steps)]
    return {
        "verdict": finite(episode.verdict),
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


def _said(trajectory: Trajectory) -> list[str]:
    """What the model wrote beside the call of each step; the whole text where no call could be read."""
    turns = [str(m.get("content") or "") for m in trajectory.messages if m["role"] == "assistant"]
    return turns if len(turns) == len(trajectory.steps) else [""] * len(trajectory.steps)


def _step(step: Step, said: str, reward: Mapping[str, Any], advantage: Mapping[str, Any]) -> Row:
    arguments = step.call.arguments if step.call else {}
    return {
        "call": step.call.name if step.call else None,
        "arguments": [
            [str(k), v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)] for k, v in arguments.items()
        ],
        "said": said[:LONGEST],
        "status": str(step.status),
        "observation": step.observation[:LONGEST],
        "cut": max(0, len(step.observation) - LONGEST),
        "rationale": str(reward.get("rationale") or "")[:LONGEST],
        **{name: finite(reward.get(name)) for name in ("succ_calling", "contribution", "is_solved")},
        **{name: finite(advantage.get(name)) for name in ("reward", "value", "advantage")},
    }


def finite(value: Any) -> float | None:
    """A number to four decimals; None for what is none."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None
