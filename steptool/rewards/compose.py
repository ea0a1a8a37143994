"""From the components of a score to one reward per step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steptool.config import RewardConfig
from steptool.records import StepReward, Trajectory


def compose(
    score_rows: Sequence[StepReward], config: RewardConfig, reward: Literal["step", "final"] = "step"
) -> npt.NDArray[np.float64] | None:
    """Rewards [T] of one trajectory from its rows of `rewards`, one per step, by one annotator.

    r_t = step_weight * (alpha * succ_t + contribution_t)   for t < T
    r_T = IsSolved

    succ_t is SuccCalling ("bonus") or SuccCalling - 1 ("penalty"). With normalisation "trajectory" r_t is divided by
    T - 1, so that the steps of a trajectory weigh the same in sum however many they are (a step without effect then
    dilutes penalties as well as contributions). "running" is applied to whole rounds (see RunningScale), not here.
    reward "final": r_t = 0 for t < T.

    None if a score that is needed is missing, or if there is no step at all. Raises ValueError for rows that are not
    those of one trajectory by one annotator.
    """
    rows = _checked(score_rows)
    if not rows or rows[-1].is_solved is None:
        return None
    rewards_T = np.zeros(len(rows))
    if reward == "step":
        succ = _column(rows, "succ_calling")
        contribution = _column(rows, "contribution")
        if succ is None or contribution is None:
            return None
        baseline = 1.0 if config.succ_calling == "penalty" else 0.0
        rewards_T[:-1] = config.step_weight * (config.alpha * (succ - baseline) + contribution)
        if config.normalisation == "trajectory":
            rewards_T[:-1] /= max(1, len(rows) - 1)
    rewards_T[-1] = rows[-1].is_solved
    return rewards_T


def step_rewards(
    trajectories: Sequence[Trajectory],
    reward_rows: Iterable[StepReward],
    config: RewardConfig,
    reward: Literal["step", "final"] = "step",
) -> list[npt.NDArray[np.float64] | None]:
    """For each trajectory the rewards [T] of its steps, None where a score that is needed is missing."""
    scores: dict[str, list[StepReward]] = defaultdict(list)
    for row in reward_rows:
        scores[row.trajectory_id].append(row)
    return [compose(scores[t.trajectory_id], config, reward) for t in trajectories]


def annotator_label(row: StepReward) -> str:
    """Who gave a score: name and version, and the prompt where there was one."""
    prompt = f" ({row.prompt_hash[:8]})" if row.prompt_hash else ""
    return f"{row.annotator} {row.annotator_version}{prompt}"


def provenance(rows: Iterable[StepReward], config: RewardConfig) -> dict[str, Any]:
    """What went into composed rewards: annotators and settings (of a judge its model and votes too).

    {"annotators": labels, "prompts": whole hashes of their prompts, "settings": section `rewards` as plain data}.
    """
    sources = {annotator_label(row): row.prompt_hash for row in rows}
    prompts = {name: prompt for name, prompt in sources.items() if prompt}
    return {"annotators": sorted(sources), "prompts": prompts, "settings": config.model_dump(mode="json")}


def _column(rows: Sequence[StepReward], name: str) -> npt.NDArray[np.float64] | None:
    scores = [getattr(row, name) for row in rows[:-1]]
    return None if None in scores else np.array(scores, dtype=np.float64)


def _checked(score_rows: Sequence[StepReward]) -> list[StepReward]:
    rows = sorted(score_rows, key=lambda row: row.step)
    sources = {(row.trajectory_id, row.annotator, row.annotator_version, row.prompt_hash) for row in rows}
    if len(sources) > 1:
        raise ValueError(f"expected the scores of one trajectory by one annotator, got those of {sorted(sources)}")
    numbers = [row.step for row in rows]
    if numbers != list(range(len(rows))):
        raise ValueError(f"expected one score for each step 0..{len(rows) - 1} of {sources}, got steps {numbers}")
    return rows
