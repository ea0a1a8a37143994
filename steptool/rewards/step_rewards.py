"""The composed rewards of many trajectories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from steptool.artifacts.contracts import Row
from steptool.config import RewardConfig
from steptool.records import Trajectory
from steptool.rewards.compose import compose


def step_rewards(
    trajectories: Sequence[Trajectory],
    reward_rows: Iterable[Row],
    config: RewardConfig,
    reward: Literal["step", "final"] = "step",
) -> list[npt.NDArray[np.float64] | None]:
    """For each trajectory the rewards [T] of its steps, None where a score that is needed is missing."""
    scores: dict[str, list[Row]] = defaultdict(list)
    for row in reward_rows:
        scores[row["trajectory_id"]].append(row)
    return [compose(scores[t.trajectory_id], config, reward) for t in trajectories]
