"""The checkpoints of a training within a task: kept in a folder and mirrored to Flyte, for the attempt after this one.

Flyte offers only what the attempt just before has written, and raises where that died before it wrote anything. So what
was restored is stored again at once.
"""

from __future__ import annotations

from flytekit import current_context
from flytekit.exceptions.user import FlyteDataNotFoundException

from steptool.artifacts.progress import first_process, say
from tasks.runtime.artifacts import scratch

_PACKED = "state.tar"


class Checkpoints:
    """A folder for a training to keep its state in, with that of an earlier attempt if there was one."""

    def __init__(self, stage: str) -> None:
        """Restore, in every process of the training: each has a folder of its own."""
        self.folder = scratch("checkpoints")
        self._store = current_context().checkpoint
        if self._restored():
            say(stage, "going on from the checkpoint of an earlier attempt")
            if first_process():
                self.save()

    def save(self) -> None:
        """Store the last complete checkpoint; the file replaces the one before whole."""
        from steptool.training.checkpoints import pack

        packed = pack(self.folder, scratch("packed") / _PACKED)
        self._store.save(packed)
        packed.unlink()

    def _restored(self) -> bool:
        from steptool.training.checkpoints import unpack

        try:
            given = self._store.restore(scratch("restored"))
        except (FlyteDataNotFoundException, FileNotFoundError):
            return False  # the attempt before died before it stored anything
        packed = given / _PACKED if given else None
        if not packed or not packed.is_file():
            return False
        whole = unpack(packed, self.folder)
        packed.unlink()
        return whole
