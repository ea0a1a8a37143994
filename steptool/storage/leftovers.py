"""What former local runs have left in the temporary folder: every model of every round, and stacks of errors."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PATTERN = re.compile(r"flyte-?\w{8}|steptool-run-\w{8}|steptool-[\w-]+\.txt")
"""Folders in which flytekit runs workflows locally, those of the command, and files with the stack of an error."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that no run has touched for a while."""

    path: Path
    size: int
    """Bytes, of all files below a folder."""


def find_leftovers(hours: float) -> list[Leftover]:
    """The files and folders of this user that were not touched for so many hours."""
    latest = time.time() - hours * 3600
    folder = Path(tempfile.gettempdir())
    matching = [path for path in sorted(folder.iterdir()) if _PATTERN.fullmatch(path.name) and _is_own(path)]
    return [leftover for leftover, touched in map(_measure, matching) if touched <= latest]


def remove_leftovers(leftovers: Iterable[Leftover]) -> None:
    """Remove them; what is gone already is no error."""
    for leftover in leftovers:
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path, ignore_errors=True)
        else:
            leftover.path.unlink(missing_ok=True)


def _is_own(path: Path) -> bool:
    return not path.is_symlink() and path.lstat().st_uid == os.getuid()


def _measure(path: Path) -> tuple[Leftover, float]:
    """The size of a file or folder, and when something in it was last changed."""
    entries = [path, *path.rglob("*")] if path.is_dir() else [path]
    states = [entry.lstat() for entry in entries]
    return Leftover(path, sum(s.st_size for s in states)), max(s.st_mtime for s in states)
