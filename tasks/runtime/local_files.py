"""What a local run keeps on this machine's disk.

Flyte removes nothing that the stages of a local run hand to each other. What no later stage reads is removed here, or a
run would end with the model and the checkpoints of every round; `steptool clean` removes the rest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flytekit import FlyteContextManager, current_context


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
