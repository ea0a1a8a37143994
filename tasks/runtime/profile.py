"""What each stage gets on a cluster: image, machine, processes, secrets. One YAML file, one tree of checked fields.

The environment variable STEPTOOL_PROFILE names the file by its path below the project's root, so that it travels with
the code into the pods. If it is unset, every stage has the defaults below, which suit a laptop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from flytekit import CronSchedule
from flytekit.extras import accelerators
from pydantic import Field, ValidationError, field_validator

from steptool.check.memory import STAGES, Machine, read_machine
from steptool.config.base import ConfigError, Natural, Positive, StrictModel, explain_refusal
from steptool.config.run import read_mapping

ROOT = Path(__file__).parents[2]
"""The project's root, here and in a pod."""
VARIABLE = "STEPTOOL_PROFILE"
_CRON = re.compile(r"([\d*/,-]+\s+){4}[0-6*/,-]+")
Quantity = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?([kMGTPE]i?)?)?$")]
"""Bytes as Kubernetes writes them, as in 16Gi; empty: not asked for."""
M = TypeVar("M", bound=StrictModel)


class StageName(StrEnum):
    """Every stage of the workflows."""

    FINGERPRINT = "fingerprint"
    INGEST = "ingest"
    DELIVER = "deliver"
    PREPARE = "prepare"
    WARM_START = "warm_start"
    ROUNDS = "rounds"
    ROLLOUT = "rollout"
    ANNOTATE = "annotate"
    AUDIT = "audit"
    PPO = "ppo"
    ROUNDS_TOGETHER = "rounds_together"
    EVALUATE = "evaluate"
    REPORT = "report"
    EVALUATE_POLICIES = "evaluate_policies"
    EVALUATE_POLICY = "evaluate_policy"
    JUDGE = "judge"
    COMPARE = "compare"
    REVIEW = "review"
    EXPORT = "export"
    VIEW = "view"
    PLAN_RETRAINING = "plan_retraining"
    CHALLENGE = "challenge"
    DECIDE = "decide"
    ASK_APPROVAL = "ask_approval"
    PROMOTE = "promote"
    REPORT_RETRAINING = "report_retraining"
    RECORD_FAILURE = "record_failure"
    EVALUATE_IN_SERVICE = "evaluate_in_service"


_DISTRIBUTED = frozenset({StageName.PPO, StageName.WARM_START})
"""The stages that may run in several processes."""


class Amounts(StrictModel):
    """A share of a machine."""

    cpu: Annotated[float, Field(ge=0)] = 0.0
    """Cores; 0 asks for none."""
    memory: Quantity = ""
    """Bytes of memory."""
    storage: Quantity = ""
    """Bytes of the pod's own disk, for what a stage downloads and writes."""


class StageProfile(StrictModel):
    """What one stage gets."""

    image: Literal["cpu", "gpu"] = "cpu"
    """Entry of [images] in flyte.config."""
    requests: Amounts = Amounts()
    """What the pod is promised."""
    limits: Amounts = Amounts()
    """What the pod may take."""
    gpus: Natural = 0
    """GPUs of each node."""
    gpu_type: str = ""
    """Name in flytekit.extras.accelerators, such as A100 or L4; empty: any."""
    nodes: Positive = 1
    """Nodes; more than one needs the Kubeflow training operator."""
    processes: Positive = 1
    """Processes on each node."""
    spot: bool = False
    """Whether the stage may run on machines that can be taken away."""
    shared_memory: Quantity = ""
    """Size of /dev/shm; empty: the machine's default, or all of the memory if there are several processes."""
    retries: Natural = 3
    """Further attempts after a transient error and after a lost pod."""
    timeout_hours: Annotated[float, Field(ge=0, le=8760)] = 0.0
    """Hours of one attempt; 0 sets no limit."""
    secrets: dict[str, str] = Field(default_factory=dict)
    """Environment variables that secrets of the cluster fill, by name; each value is group/key."""

    @field_validator("gpu_type")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name and not isinstance(_find_accelerator(name), accelerators.BaseAccelerator):
            names = sorted(k for k, v in vars(accelerators).items() if isinstance(v, accelerators.BaseAccelerator))
            raise ValueError(f"expected one of {', '.join(names)}")
        return name

    @property
    def accelerator(self) -> accelerators.BaseAccelerator | None:
        """The kind of GPU as flytekit's object."""
        return _find_accelerator(self.gpu_type) if self.gpu_type else None

    def find_fault(self, stage: StageName) -> str:
        """Why the stage cannot run with this; empty if it can."""
        if self.gpu_type and not self.gpus:
            return f"gpu_type {self.gpu_type} without gpus: say how many, or leave the type out"
        if self.nodes * self.processes > 1 and stage not in _DISTRIBUTED:
            distributed_stages = " and ".join(sorted(_DISTRIBUTED))
            return (
                f"{self.nodes} nodes of {self.processes} processes: only {distributed_stages} run in several processes"
            )
        if self.gpus and self.processes > self.gpus:
            return f"{self.processes} processes on {self.gpus} gpus: a process needs a GPU of its own"
        return ""


class Recipients(StrictModel):
    """Addresses that get a message when an execution failed, timed out or was aborted."""

    email: list[str] = Field(default_factory=list)
    slack: list[str] = Field(default_factory=list)
    pagerduty: list[str] = Field(default_factory=list)


class LaunchPlans(StrictModel):
    """The runs that start by schedule (workflows/launch_plans.py)."""

    registry: str
    """Folder or url of the registry of champions."""
    output: str
    """Folder or url that receives a folder for each run of retraining and for each evaluation."""
    retraining: str = "configs/nightly.yaml"
    """Configuration of retraining, by its path below the project's root."""
    nightly: str = "0 2 * * *"
    """When retraining starts: five fields of cron, UTC."""
    evaluation: str = "configs/nightly.yaml"
    """Configuration of the full evaluation."""
    weekly: str = "0 6 * * 0"
    """When the full evaluation starts."""
    notify: Recipients = Recipients()

    @field_validator("nightly", "weekly")
    @classmethod
    def _is_cron(cls, schedule: str) -> str:
        if not _CRON.fullmatch(schedule):
            raise ValueError(
                "expected five fields of cron (minute, hour, day of the month, month, day of the week) of numbers with "
                "* / , and -, the days of the week from 0 to 6: Flyte's scheduler passes over what it cannot read"
            )
        CronSchedule(schedule=schedule)  # raises ValueError
        return schedule


class Profile(StrictModel):
    """The machines of all stages, and the runs that start by schedule."""

    defaults: StageProfile = StageProfile()
    stages: dict[StageName, StageProfile] = Field(default_factory=dict)
    """Fields that differ from the defaults, by stage."""
    launch_plans: LaunchPlans | None = None
    """Schedules; without this section nothing starts by schedule."""

    @field_validator("stages", mode="before")
    @classmethod
    def _parse_names(cls, stages: Any) -> Any:
        """Turn names into members of StageName, which a strict model asks for."""
        if not isinstance(stages, Mapping):
            return stages
        if unknown := [name for name in stages if name not in set(StageName)]:
            raise ValueError(f"no stage is called {', '.join(map(str, unknown))}; there are {', '.join(StageName)}")
        return {StageName(name): fields for name, fields in stages.items()}

    def find_faults(self) -> list[str]:
        """Why stages cannot run with this profile, a line for each."""
        return [f"stages.{stage}: {fault}" for stage in StageName if (fault := self.of(stage).find_fault(stage))]

    @property
    def trains_in_several_processes(self) -> bool:
        """Whether rounds are learned from in several processes, which only the stage ppo can have."""
        ppo = self.of(StageName.PPO)
        return ppo.nodes * ppo.processes > 1

    def of(self, stage: StageName) -> StageProfile:
        """What the stage gets: the defaults, replaced by its own fields."""
        return _override(self.defaults, self.stages.get(stage, StageProfile()))

    def list_machines(self) -> dict[str, Machine]:
        """The machine of each stage that holds a model, by the name of the stage."""
        profiles = {name: self.of(StageName(name)) for name in STAGES}
        return {
            name: read_machine(of.gpus, of.gpu_type, of.limits.memory, of.processes, of.limits.storage)
            for name, of in profiles.items()
        }


def load_profile(path: str | Path) -> Profile:
    """Read a profile. Raises ConfigError naming the file and every field that is wrong."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file; {VARIABLE} names a profile such as configs/cluster.yaml")
    data = read_mapping(path)
    try:
        loaded_profile = Profile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_refusal(error, Profile, 'configs/cluster.yaml')}") from None
    if faults := loaded_profile.find_faults():
        raise ConfigError(f"{path}: the profile was refused\n  " + "\n  ".join(faults))
    return loaded_profile


@cache
def profile() -> Profile:
    """The profile that STEPTOOL_PROFILE names. Raises ConfigError as `load_profile`."""
    path = os.environ.get(VARIABLE, "")
    return load_profile(ROOT / path) if path else Profile()


def _override(base: M, overrides: M) -> M:
    """The base with every field that was set in the overrides, section by section."""
    changes = {}
    for name in overrides.model_fields_set:
        value = getattr(overrides, name)
        changes[name] = _override(getattr(base, name), value) if isinstance(value, StrictModel) else value
    return base.model_copy(update=changes)


def _find_accelerator(name: str) -> Any:
    try:
        return attrgetter(name)(accelerators)
    except AttributeError:
        return None
