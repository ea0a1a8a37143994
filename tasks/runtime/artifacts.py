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

from steptool.artifacts.layout import COSTS
from steptool.contracts.tables import write_records
from steptool.records import Cost

Parquet: TypeAlias = FlyteFile
"""A Parquet file of one of the contracts in steptool.records.

A FlyteFile with a format of its own could not be handed to the processes of a training.
"""
Shard: TypeAlias = FlyteDirectory
"""A folder with a Parquet file and what it cost: the one output that a task has which runs once for each shard."""
Model: TypeAlias = FlyteDirectory
"""A model folder: weights, tokenizer, model card."""


def make_folder(name: str) -> Path:
    """Make an empty folder for what this task writes; its last part is the name."""
    folder = Path(current_context().working_directory) / uuid.uuid4().hex / name
    folder.mkdir(parents=True)
    return folder


def download(artifact: FlyteFile | FlyteDirectory) -> Path:
    """Bring an artifact to this machine and return its path.

    An artifact that is here already is not copied. The processes of a training on one node download it once.
    """
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == "1" or not artifact.remote_source:
        return Path(artifact.download())
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.downloaded").open("a") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        if not os.fstat(marker.fileno()).st_size:
            artifact.download()
            marker.write("complete")
    return path


def write_costs(folder: Path, *costs: Cost) -> Parquet:
    """Write costs into a folder, under their usual name."""
    return Parquet(str(write_records(folder / COSTS, costs, Cost)))


def download_all(artifacts: list[Parquet]) -> list[Path]:
    """Bring several artifacts to this machine."""
    return [download(artifact) for artifact in artifacts]
