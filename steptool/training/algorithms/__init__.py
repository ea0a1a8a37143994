"""The algorithms, each under the name that `ppo.algorithm` gives it. A new one is a class in a file here and a line."""

from __future__ import annotations

from steptool.training.algorithms.archer import StepCritic
from steptool.training.algorithms.base import Algorithm
from steptool.training.algorithms.eto import ExplorationPreference
from steptool.training.algorithms.grpo import GroupInGroup, GroupRelative
from steptool.training.algorithms.rft import RejectionFineTuning
from steptool.training.algorithms.step_ppo import StepPPO

ALGORITHMS: dict[str, type[Algorithm]] = {
    "step_ppo": StepPPO,
    "rft": RejectionFineTuning,
    "grpo": GroupRelative,
    "gigpo": GroupInGroup,
    "eto": ExplorationPreference,
    "archer": StepCritic,
}
