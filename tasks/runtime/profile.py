"""What each stage gets on a cluster: image, machine, processes, secrets. One YAML file, one tree of checked fields.

The environment variable STEPTOOL_PROFILE names the file by its path below the project's root, so that it travels with
the code into the pods. Unset, every stage has the defaults below: the laptop's profile.
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

from steptool.config.base import ConfigError, Positive, StrictModel, explain_refusal, read_mapping

ROOT = Path(__file__).parents[2]
"""The project's root, here and in a pod."""
VARIABLE = "STEPTOOL_PROFILE"
_CRON = re.compile(r"([\d*/,-]+\s+){4}[0-6*/,-]+")
Quantity = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?([kMGTPE]i?)?)?$")]
"""Bytes as Kubernetes writes them, as in 16Gi; empty: not asked for."""
Natural = Annotated[int, Field(ge=0)]
S = TypeVar("S", bound=StrictModel)


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
    EVALUATE = "evaluate"
    REPORT = "report"
    CONTESTS = "contests"
    CONTEST = "contest"
    JUDGE = "judge"
    COMPARE = "compare"
    REVIEW = "review"
    EXPORT = "export"
    VIEW = "view"
    LOOK = "look"
    CHALLENGE = "challenge"
    DECIDE = "decide"
    APPROVAL = "approval"
    PROMOTE = "promote"
    TELL = "tell"
    RECORD_FAILURE = "record_failure"
    LINE_UP = "line_up"


_TRAINING = frozenset({StageName.PPO, StageName.WARM_START})
"""The stages that may run in several processes."""


class Amounts(StrictModel):
    """A share of a machine."""

    cpu: Annotated[float, Field(ge=0)] = 0.0
    """Cores; 0: not asked for."""
    memory: Quantity = ""
    storage: Quantity = ""
    """Of the pod's own disk, for what a stage downloads and writes."""


class StageProfile(StrictModel):
    """What one stage gets."""

    image: Literal["cpu", "gpu"] = "cpu"
    """Entry of [images] in flyte.config."""
    requests: Amounts = Amounts()
    """What the pod is promised."""
    limits: Amounts = Amounts()
    """What the pod may take."""
    gpus: Natural = 0
    """On each node."""
    gpu_type: str = ""
    """Name in flytekit.extras.accelerators, as A100 or L4; empty: any."""
    nodes: Positive = 1
    """More than one needs the Kubeflow training operator."""
    processes: Positive = 1
    """On each node."""
    spot: bool = False
    """May run on machines that can be taken away."""
    shared_memory: Quantity = ""
    """Size of /dev/shm. Empty: the machine's default, and with several processes all of the memory."""
    retries: Natural = 3
    """Further attempts after an error that may pass, and after a pod was lost."""
    timeout_hours: Annotated[float, Field(ge=0)] = 0.0
    """Hours of one attempt; 0: without a limit."""
    secrets: dict[str, str] = Field(default_factory=dict)
    """Environment variables that a secret of the cluster fills: name to group/key."""

    @field_validator("gpu_type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name and not isinstance(_accelerator(name), accelerators.BaseAccelerator):
            known = sorted(k for k, v in vars(accelerators).items() if isinstance(v, accelerators.BaseAccelerator))
            raise ValueError(f"expected one of {', '.join(known)}")
        return name

    @property
    def accelerator(self) -> accelerators.BaseAccelerator | None:
        """The kind of GPU, in Flyte's words."""
        return _accelerator(self.gpu_type) if self.gpu_type else None

    def fault(self, stage: StageName) -> str:
        """Why this cannot work; empty if it can."""
        if self.gpu_type and not self.gpus:
            return f"gpu_type {self.gpu_type} without gpus: say how many, or leave the type out"
        if self.nodes * self.processes > 1 and stage not in _TRAINING:
            return (
                f"{self.nodes} nodes of {self.processes} processes: only {' and '.join(sorted(_TRAINING))} share work"
            )
        if self.gpus and self.processes > self.gpus:
            return f"{self.processes} processes on {self.gpus} gpus: a process needs a GPU of its own"
        return ""


class Recipients(StrictModel):
    """Who is told of an execution that failed, timed out or was aborted: addresses by the way that they are told."""

    email: list[str] = Field(default_factory=list)
    slack: list[str] = Field(default_factory=list)
    pagerduty: list[str] = Field(default_factory=list)


class LaunchPlans(StrictModel):
    """What runs by itself (workflows/launch_plans.py)."""

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
    def _cron(cls, schedule: str) -> str:
        if not _CRON.fullmatch(schedule):
            raise ValueError(
                "expected five fields of cron (minute, hour, day of the month, month, day of the week) of numbers with "
                "* / , and -, the days of the week from 0 to 6: Flyte's scheduler passes over what it cannot read"
            )
        CronSchedule(schedule=schedule)  # raises ValueError
        return schedule


class Profile(StrictModel):
    """All stages, and what runs by itself."""

    defaults: StageProfile = StageProfile()
    stages: dict[StageName, StageProfile] = Field(default_factory=dict)
    """What differs from the defaults."""
    launch_plans: LaunchPlans | None = None
    """None: nothing runs by itself."""

    @field_validator("stages", mode="before")
    @classmethod
    def _named(cls, stages: Any) -> Any:
        """Names as members of the enumeration, which a strict section wants."""
        if not isinstance(stages, Mapping):
            return stages
        if unknown := [name for name in stages if name not in set(StageName)]:
            raise ValueError(f"no stage is called {', '.join(map(str, unknown))}; there are {', '.join(StageName)}")
        return {StageName(name): given for name, given in stages.items()}

    def faults(self) -> list[str]:
        """What cannot work, by stage."""
        return [f"stages.{stage}: {fault}" for stage in StageName if (fault := self.of(stage).fault(stage))]

    def of(self, stage: StageName) -> StageProfile:
        """What the stage gets: its own fields over the defaults."""
        return _over(self.defaults, self.stages.get(stage, StageProfile()))


def load_profile(path: str | Path) -> Profile:
    """Read a profile. Raises ConfigError naming the file and every field that is wrong."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file; {VARIABLE} names a profile such as configs/cluster.yaml")
    data = read_mapping(path)
    try:
        read = Profile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_refusal(error, 'configs/cluster.yaml')}") from None
    if faults := read.faults():
        raise ConfigError(f"{path}: the profile was refused\n  " + "\n  ".join(faults))
    return read


@cache
def profile() -> Profile:
    """The profile that STEPTOOL_PROFILE names. Raises ConfigError as `load_profile`."""
    name = os.environ.get(VARIABLE, "")
    return load_profile(ROOT / name) if name else Profile()


def _over(base: S, own: S) -> S:
    """A section with those fields of another that were set there, section by section."""
    changed = {}
    for name in own.model_fields_set:
        value = getattr(own, name)
        changed[name] = _over(getattr(base, name), value) if isinstance(value, StrictModel) else value
    return base.model_copy(update=changed)


def _accelerator(name: str) -> Any:
    try:
        return attrgetter(name)(accelerators)
    except AttributeError:
        return None
