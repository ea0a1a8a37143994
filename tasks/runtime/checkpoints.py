"""The checkpoints of a training within a task: kept in a folder, and copied to Flyte for the next attempt.

Flyte offers only what the attempt just before has written, and raises where that attempt died before it wrote anything.
So a checkpoint that was restored is stored again at once.
"""

from __future__ import annotations

from pathlib import Path

from flytekit import current_context
from flytekit.exceptions.user import FlyteDataNotFoundException

from steptool.artifacts.progress import first_process, say
from tasks.runtime.artifacts import make_folder
from tasks.runtime.local_files import discard

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
            if first_process():
                self.save()

    def save(self) -> None:
        """Store the last complete checkpoint; it replaces the one before as a whole."""
        from steptool.training.checkpoints import pack

        archive = pack(self.folder, make_folder("packed") / _ARCHIVE)
        self._store.save(archive)
        archive.unlink()

    def remove(self) -> None:
        """Remove the state from a local disk when the training has ended; nothing goes on from it any more."""
        discard(self.folder)
        discard(Path(current_context().working_directory) / _LOCAL_STORE)

    def _restore(self) -> bool:
        """Whether a complete checkpoint of an earlier attempt is in the folder now."""
        from steptool.training.checkpoints import unpack

        try:
            stored = self._store.restore(make_folder("restored"))
        except (FlyteDataNotFoundException, FileNotFoundError):
            return False  # the attempt before died before it stored anything
        archive = stored / _ARCHIVE if stored else None
        if not archive or not archive.is_file():
            return False
        is_complete = unpack(archive, self.folder)
        archive.unlink()
        return is_complete
