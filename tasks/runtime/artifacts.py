"""What the tasks hand to each other, where they keep it while they work, and the checkpoints of a training within a
task.

Flyte removes nothing that the stages of a local run hand to each other. This module removes what no later stage
reads; otherwise a run would end with the model and the checkpoints of every round. `steptool clean` removes the rest.

Flyte offers only what the attempt just before has written, and raises where that attempt died before it wrote anything.
So a checkpoint that was restored is stored again at once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from pathlib import Path
from typing import TypeAlias

from flytekit import FlyteContextManager, current_context
from flytekit.exceptions.user import FlyteDataNotFoundException
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.lineage import COSTS
from steptool.artifacts.metrics import is_first_process, say
from steptool.records import Cost
from steptool.records.tables import write_records


def runs_locally() -> bool:
    """Whether `pyflyte run` or a Python program runs the stage in its own process, and not a pod."""
    state = FlyteContextManager.current_context().execution_state
    return bool(state and state.is_local_execution())


def discard(folder: Path, *needed: Path) -> None:
    """Remove a folder that no later stage of a local run reads, unless it is one of those needed.

    Only what a stage of this run has made is removed: a user's own folder stays, and so does everything in a pod.
    """
    of_run = Path(current_context().working_directory).parent
    if runs_locally() and folder not in needed and folder.is_relative_to(of_run) and folder != of_run:
        shutil.rmtree(folder, ignore_errors=True)


Parquet: TypeAlias = FlyteFile
"""A Parquet file of one of the contracts in steptool.records.

A FlyteFile with a format of its own could not be handed to the processes of a training.
"""
Shard: TypeAlias = FlyteDirectory
"""A folder with a Parquet file and its costs: a task that runs once for each shard can have only one output."""
Tasks: TypeAlias = FlyteDirectory
"""A folder that steptool.pipeline.episodes.TaskSet reads: queries, and recordings where something answers from them."""
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


def download_policy(model: Model, base: Model) -> tuple[Path, Path]:
    """Bring a policy to this machine, and the base of its adapter.

    The base of a policy that is a whole model stays where it is; the policy's own folder stands in its place.
    """
    from steptool.models.adapter import is_adapter

    folder = download(model)
    return folder, download(base) if is_adapter(folder) else folder


def write_costs(folder: Path, *costs: Cost) -> Parquet:
    """Write costs into a folder, under their usual name."""
    return Parquet(str(write_records(folder / COSTS, costs, Cost)))


def download_all(artifacts: list[Parquet]) -> list[Path]:
    """Bring several artifacts to this machine."""
    return [download(artifact) for artifact in artifacts]


_ARCHIVE = "state.tar"
_LOCAL_STORE = "__cp"
"""Folder in which flytekit stores the checkpoints of a local run."""


class Checkpoints:
    """A folder in which a training keeps its state; it holds the state of an earlier attempt if there was one."""

    def __init__(self, stage: str) -> None:
        """Restore the state in every process of the training: each has a folder of its own."""
        self.folder = make_folder("checkpoints")
        self._store = current_context().checkpoint
        if self._restore():
            say(stage, "going on from the checkpoint of an earlier attempt")
            if is_first_process():
                self.save()

    def save(self) -> None:
        """Store the last complete checkpoint; it replaces the one before as a whole."""
        from steptool.training.trainer import pack

        archive = pack(self.folder, make_folder("packed") / _ARCHIVE)
        self._store.save(archive)
        archive.unlink()

    def remove(self, *needed: Path) -> None:
        """Remove the state from a local disk when the training has ended; nothing goes on from it any more.

        The folder stays if it is one of those needed.
        """
        discard(self.folder, *needed)
        discard(Path(current_context().working_directory) / _LOCAL_STORE)

    def _restore(self) -> bool:
        """Whether a complete checkpoint of an earlier attempt is in the folder now."""
        from steptool.training.trainer import unpack

        try:
            state = self._store.restore(make_folder("restored"))
        except (FlyteDataNotFoundException, FileNotFoundError):
            return False  # the attempt before died before it stored anything
        archive = state / _ARCHIVE if state else None
        if not archive or not archive.is_file():
            return False
        is_complete = unpack(archive, self.folder)
        archive.unlink()
        return is_complete
