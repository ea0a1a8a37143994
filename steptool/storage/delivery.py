"""Files put where the user wants them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fsspec  # type: ignore[import-untyped]


def deliver(file: Path, folder: str, name: str) -> str:
    """Copy a file into a folder or url under a name: whole or not at all. Other files there stay. Returns its place."""
    place = f"{folder.rstrip('/')}/{name}"
    if "://" in folder:
        fs, path = fsspec.core.url_to_fs(place)
        fs.put_file(str(file), path)
        return place
    target = Path(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(file, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return place
