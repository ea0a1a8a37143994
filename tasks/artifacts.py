"""What the tasks hand to each other, and where they keep it while they work."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TypeVar

from flytekit import Secret, current_context
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

Parquet = FlyteFile[TypeVar("parquet")]
"""A Parquet file of one of the contracts in steptool.contracts."""
Model = FlyteDirectory
"""A model folder: weights, tokenizer, model card."""
IMAGE = "{{.image.trainer.fqn}}:{{.image.trainer.version}}"
"""The image that tasks run in on a cluster: the entry `trainer` of flyte.config."""


def scratch(name: str) -> Path:
    """A new empty folder for what this task writes; its last part is the name."""
    folder = Path(current_context().working_directory) / uuid.uuid4().hex / name
    folder.mkdir(parents=True)
    return folder


def local(artifact: FlyteFile | FlyteDirectory) -> Path:
    """The artifact on this machine, downloaded if it is elsewhere."""
    return Path(artifact.download())


def local_all(artifacts: list[Parquet]) -> list[Path]:
    """Artifacts on this machine."""
    return [local(a) for a in artifacts]


def secrets() -> list[Secret]:
    """Secrets of the cluster that a task gets as environment variables, named when the workflows are registered.

    STEPTOOL_SECRETS lists them: OPENAI_API_KEY=group/key, separated by commas.
    """
    entries = [entry.partition("=") for entry in os.environ.get("STEPTOOL_SECRETS", "").split(",") if entry]
    return [_secret(variable.strip(), *name.strip().split("/", 1)) for variable, _, name in entries]


def _secret(variable: str, group: str, key: str | None = None) -> Secret:
    return Secret(group=group, key=key, env_var=variable, mount_requirement=Secret.MountType.ENV_VAR)
