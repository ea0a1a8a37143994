"""Episodes as plain data for the pages, alone and in pairs before and after training. steps.js renders them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steptool.config import RewardConfig
from steptool.records import Advantage, Step, StepReward, Trajectory
from steptool.report.run_inputs import EpisodePair, ScoredEpisode
from steptool.rewards.compose import compose

MAX_CHARACTERS = 6000
"""Characters of an observation that a page keeps."""
OUTCOMES = {
    "fixed": "fixed: only after training",
    "broken": "broken: only before training",
    "both": "both: solved before and after",
    "neither": "neither: solved neither before nor after",
    "unknown": "unknown: no verdict",
    "alone": "alone: one episode, no counterpart",
}
"""What training did to a task: a name, and its description on the page. The verdicts before and after decide."""


def episode_data(episode: ScoredEpisode, config: Mapping[str, Any]) -> dict[str, Any]:
    """An episode with its steps and their scores. A score that is missing is None.

    Without advantages the rewards are composed from the scores as `config` says (its section `rewards`), if it does.
    """
    trajectory = episode.trajectory
    rewards = {r.step: r for r in episode.rewards if r.trajectory_id == trajectory.trajectory_id}
    advantages = {a.step: a for a in episode.advantages if a.trajectory_id == trajectory.trajectory_id}
    composed = {} if advantages else dict(enumerate(_compose(list(rewards.values()), trajectory.steps, config)))
    texts = _texts(trajectory)
    steps = [
        {**_step(step, texts[i]), **_scores(rewards.get(i)), **_credit(advantages.get(i), composed.get(i))}
        for i, step in enumerate(trajectory.steps)
    ]
    return {
        "verdict": finite(episode.verdict),
        "origin": f"training, round {trajectory.round}" if trajectory.round >= 0 else "evaluation",
        "stop": str(trajectory.stop_reason),
        "answer": trajectory.final_answer,
        "tokens": trajectory.action_tokens,
        "steps": steps,
    }


def pair_data(examples: Sequence[EpisodePair], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The examples as JSON-ready data, those that training changed first.

    Where an episode was scored but not trained on, its rewards are composed as the run's configuration says.
    """
    tasks = [_task(e, config or {}) for e in examples]
    order = list(OUTCOMES)
    return {"outcomes": OUTCOMES, "tasks": sorted(tasks, key=lambda t: order.index(t["outcome"]))}


def embed(data: Any) -> str:
    """The data as JSON that is safe inside a script tag: no character of it can end the tag or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def outcome(example: EpisodePair) -> str:
    """The outcome of a pair, one of OUTCOMES. A verdict above one half counts as solved."""
    if example.before is None or example.after is None:
        return "alone"
    before, after = example.before.verdict, example.after.verdict
    if before is None or after is None:
        return "unknown"
    solved = before > 0.5, after > 0.5
    return {(False, True): "fixed", (True, False): "broken", (True, True): "both"}.get(solved, "neither")


def _task(example: EpisodePair, config: Mapping[str, Any]) -> dict[str, Any]:
    answer = example.query.reference.answer
    return {
        "id": example.query.query_id,
        "tier": example.query.tier,
        "instruction": example.query.instruction,
        "answer": answer if isinstance(answer, str) else None,
        "outcome": outcome(example),
        "before": episode_data(example.before, config) if example.before else None,
        "after": episode_data(example.after, config) if example.after else None,
    }


def _compose(rewards: Sequence[StepReward], steps: Sequence[Step], config: Mapping[str, Any]) -> Sequence[float]:
    if len(rewards) != len(steps) or "rewards" not in config:
        return ()
    reward = (config.get("ppo") or {}).get("reward", "step")
    composed = compose(rewards, RewardConfig.model_validate(config["rewards"]), reward, steps)
    return () if composed is None else composed.tolist()


def _texts(trajectory: Trajectory) -> list[str]:
    """The text that the model wrote beside the call of each step; the whole turn where no call could be read."""
    turns = [str(m.get("content") or "") for m in trajectory.messages if m["role"] == "assistant"]
    return turns if len(turns) == len(trajectory.steps) else [""] * len(trajectory.steps)


def _step(step: Step, text: str) -> dict[str, Any]:
    arguments = step.call.arguments if step.call else {}
    return {
        "call": step.call.name if step.call else None,
        "arguments": [
            [str(k), v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)] for k, v in arguments.items()
        ],
        "text": text[:MAX_CHARACTERS],
        "status": str(step.status),
        "observation": step.observation[:MAX_CHARACTERS],
        "cut": max(0, len(step.observation) - MAX_CHARACTERS),
    }


def _scores(reward: StepReward | None) -> dict[str, Any]:
    return {
        "rationale": reward.rationale[:MAX_CHARACTERS] if reward else "",
        "succ_calling": finite(reward and reward.succ_calling),
        "contribution": finite(reward and reward.contribution),
        "is_solved": finite(reward and reward.is_solved),
    }


def _credit(advantage: Advantage | None, composed: float | None) -> dict[str, float | None]:
    """What the training made of a step; without a training its composed reward."""
    if advantage is None:
        return {"reward": finite(composed), "value": None, "advantage": None}
    names = ("reward", "value", "advantage")
    return {name: finite(getattr(advantage, name)) for name in names}


def finite(value: Any) -> float | None:
    """A number to four decimals; None for None, infinities and NaN."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None
