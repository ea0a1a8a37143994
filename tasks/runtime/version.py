"""Versions that follow from content: of the code, for Flyte's caches, and of all that is registered."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tasks.runtime.profile import ROOT, VARIABLE

_CODE_PLACES = ("steptool", "tasks", "workflows", "constraints.txt", "images/gpu.constraints.txt")
_DIGITS = 16


@cache
def code_version(root: Path = ROOT) -> str:
    """Digest of the code, its data files and the pins of libraries: a cached stage depends on these and its inputs."""
    digest = hashlib.sha256()
    for file in (f for place in _CODE_PLACES for f in _list_files(root / place)):
        digest.update(f"\0{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def registered_version(root: Path = ROOT) -> str:
    """Digest of every file that travels with a registration, and of the name of the profile."""
    from flytekit.constants import CopyFileDetection
    from flytekit.tools.ignore import DockerIgnore, FlyteIgnore, GitIgnore, IgnoreGroup, StandardIgnore
    from flytekit.tools.script_mode import ls_files

    ignored = IgnoreGroup(str(root), [GitIgnore, DockerIgnore, StandardIgnore, FlyteIgnore])
    _, digest = ls_files(str(root), CopyFileDetection.ALL, ignore_group=ignored)
    return hashlib.sha256(f"{digest} {os.environ.get(VARIABLE, '')}".encode()).hexdigest()[:_DIGITS]


def _list_files(place: Path) -> Iterator[Path]:
    """The file, or the files below a folder in a fixed order, without caches and hidden files."""
    if place.is_file():
        yield place
    for file in sorted(place.rglob("*")):
        parts = file.relative_to(place).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            yield file
