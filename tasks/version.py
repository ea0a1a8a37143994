"""Versions that follow from content: of the code, for Flyte's caches, and of all that is registered.

python -m tasks.version prints the second.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tasks.profile import ROOT, VARIABLE

_CODE = ("steptool", "tasks", "workflows")
_REGISTERED = (*_CODE, "configs", "flyte.config")
_DIGITS = 16


@cache
def code_version(root: Path = ROOT) -> str:
    """Digest of the sources and data files of the code: what a cached stage depends on besides its inputs."""
    return _digest(root, _CODE)


def registered_version(root: Path = ROOT) -> str:
    """Digest of the code, the configurations, flyte.config and the name of the profile."""
    return _digest(root, _REGISTERED, os.environ.get(VARIABLE, ""))


def _digest(root: Path, places: tuple[str, ...], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for file in (f for place in places for f in _files(root / place)):
        digest.update(f"\0{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _files(place: Path) -> Iterator[Path]:
    """The file, or those below the folder in a fixed order, without what the interpreter and editors leave there."""
    if place.is_file():
        yield place
    for file in sorted(place.rglob("*")):
        parts = file.relative_to(place).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            yield file


if __name__ == "__main__":
    print(registered_version())
