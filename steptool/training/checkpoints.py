"""The state of a training as one file, so that it is stored elsewhere whole or not at all."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from steptool.training.algorithms.step_ppo import SCORES
from steptool.training.planned import COMPLETE, last_checkpoint


def pack(folder: Path, target: Path) -> Path:
    """Write the last complete checkpoint of a folder, and the scores that PPO keeps beside it, into a tar file."""
    last = last_checkpoint(folder)
    if last is None:
        raise ValueError(f"{folder}: no complete checkpoint to pack; call this after one was written")
    files = sorted((f for f in last.rglob("*") if f.is_file()), key=lambda f: f.name == COMPLETE)  # the mark is last
    with tarfile.open(target, "w") as tar:
        for file in [folder / SCORES] * (folder / SCORES).is_file() + files:
            tar.add(file, file.relative_to(folder))
    return target


def unpack(source: Path, folder: Path) -> bool:
    """Put what was packed into an empty folder. False, and nothing is there, if the file was cut short."""
    try:
        with tarfile.open(source) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.ReadError:
        pass
    if last_checkpoint(folder):
        return True
    shutil.rmtree(folder)
    folder.mkdir()
    return False
