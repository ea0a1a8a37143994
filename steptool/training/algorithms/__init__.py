"""The algorithms, each under the name that `ppo.algorithm` gives it. A new one is a class in a file here and a line."""

from __future__ import annotations

from steptool.training.algorithms.base import Algorithm
from steptool.training.algorithms.baselines import GroupInGroup, GroupRelative, RejectionFineTuning, StepCritic
from steptool.training.algorithms.eto import ExplorationPreference
from steptool.training.algorithms.step_ppo import StepPPO

ALGORITHMS: dict[str, type[Algorithm]] = {
    "step_ppo": StepPPO,
    "rft": RejectionFineTuning,
    "grpo": GroupRelative,
    "gigpo": GroupInGroup,
    "eto": ExplorationPreference,
    "archer": StepCritic,
}
