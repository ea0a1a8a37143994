"""From the components of a score to one reward per step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steptool.config import RewardConfig
from steptool.records import Step, StepReward, Trajectory
from steptool.rewards.farming import redundant_steps


def compose(
    score_rows: Sequence[StepReward],
    config: RewardConfig,
    reward: Literal["step", "final"] = "step",
    steps: Sequence[Step] = (),
) -> npt.NDArray[np.float64] | None:
    """Rewards [T] of one trajectory from its rows of StepReward, one per step, by one annotator.

    r_t = step_weight * (alpha * succ_t + gain_t - redundant_cost * redundant_t)   for t < T
    r_T = IsSolved

    succ_t is SuccCalling ("bonus") or SuccCalling - 1 ("penalty"). gain_t is Contribution ("score") or its progress
    phi_t - phi_{t-1} ("progress") with the potential phi_t = min(1, sum of Contribution up to t / progress_steps). The
    progress of a trajectory sums to at most 1, however many steps it has (potential-based shaping, Ng, Harada and
    Russell 1999). redundant_t is 1 for a call that brings nothing new (`farming.redundant_steps` of `steps`, those of
    the trajectory, which are needed where redundant_cost is not 0).

    With normalisation "trajectory" r_t is divided by T - 1, so that the steps of a trajectory weigh the same in sum
    however many they are (a step without effect then dilutes penalties as well as contributions). "running" is applied
    to whole rounds (see RunningScale), not here. reward "final": r_t = 0 for t < T.

    None if a score that is needed is missing, or if there is no step at all. Raises ValueError for rows that are not
    those of one trajectory by one annotator, and for `steps` of another number.
    """
    rows = _check_rows(score_rows)
    if not rows or rows[-1].is_solved is None:
        return None
    rewards_T = np.zeros(len(rows))
    if reward == "step":
        succ = _column(rows, "succ_calling")
        contribution = _column(rows, "contribution")
        if succ is None or contribution is None:
            return None
        baseline = 1.0 if config.succ_calling == "penalty" else 0.0
        gain = _progress(contribution, config.progress_steps) if config.contribution == "progress" else contribution
        cost = config.redundant_cost * _redundant(steps, len(rows)) if config.redundant_cost else 0.0
        rewards_T[:-1] = config.step_weight * (config.alpha * (succ - baseline) + gain - cost)
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
    return [compose(scores[t.trajectory_id], config, reward, t.steps) for t in trajectories]


def _progress(contribution_T: npt.NDArray[np.float64], needed: int) -> npt.NDArray[np.float64]:
    """The growth of the potential at each step before the last."""
    potential_T = np.minimum(np.cumsum(contribution_T) / needed, 1.0)
    return np.diff(potential_T, prepend=0.0)


def _redundant(steps: Sequence[Step], count: int) -> npt.NDArray[np.float64]:
    """1 for each redundant step before the last, else 0."""
    if len(steps) != count:
        raise ValueError(f"rewards.redundant_cost needs the {count} steps of the trajectory, got {len(steps)}")
    return np.array(redundant_steps(steps)[:-1], dtype=np.float64)


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


def _check_rows(score_rows: Sequence[StepReward]) -> list[StepReward]:
    rows = sorted(score_rows, key=lambda row: row.step)
    sources = {(row.trajectory_id, row.annotator, row.annotator_version, row.prompt_hash) for row in rows}
    if len(sources) > 1:
        raise ValueError(f"expected the scores of one trajectory by one annotator, got those of {sorted(sources)}")
    numbers = [row.step for row in rows]
    if numbers != list(range(len(rows))):
        raise ValueError(f"expected one score for each step 0..{len(rows) - 1} of {sources}, got steps {numbers}")
    return rows
