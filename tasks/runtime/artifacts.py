"""What the tasks hand to each other, and where they keep it while they work."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import TypeAlias

from flytekit import current_context
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

Parquet: TypeAlias = FlyteFile
"""A Parquet file of one of the contracts in steptool.artifacts.contracts. (A format of its own would not travel to the
processes of a training.)"""
Model: TypeAlias = FlyteDirectory
"""A model folder: weights, tokenizer, model card."""


def scratch(name: str) -> Path:
    """A new empty folder for what this task writes; its last part is the name."""
    folder = Path(current_context().working_directory) / uuid.uuid4().hex / name
    folder.mkdir(parents=True)
    return folder


def local(artifact: FlyteFile | FlyteDirectory) -> Path:
    """The artifact on this machine, downloaded if it is elsewhere; once for all processes of a training on a node."""
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == "1" or not artifact.remote_source:
        return Path(artifact.download())
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.here").open("a") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        if not os.fstat(mark.fileno()).st_size:
            artifact.download()
            mark.write("whole")
    return path


def local_all(artifacts: list[Parquet]) -> list[Path]:
    """Artifacts on this machine."""
    return [local(a) for a in artifacts]
