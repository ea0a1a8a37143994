"""The state of a training between two optimizer steps: kept in a folder, packed into one file to store elsewhere.

A checkpoint holds the trained parameters, the optimizer's state and the figures of the steps so far, and no pickles. It
counts once it is complete, and as long as every file has the digest that was written with it. Of a model that is cut
over processes each writes its parts, and any number of processes go on from them.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from steptool.artifacts.lineage import sha256
from steptool.artifacts.metrics import say
from steptool.models.optimizer import load_moments, save_moments
from steptool.models.sharding import is_sharded, load_sharded_moments, moments, read_parts, write_parts
from steptool.training import scores
from steptool.training.processes import agree, processes

COMPLETE = "complete"
"""File with the SHA-256 of every other file of a checkpoint; it is written after all of them."""
_TRAINED = "trained.safetensors"
_PROGRESS = "progress.json"
_PARTS = "parts"
"""Folder of the parts of a model that is cut over processes."""
_KEPT = 2
OnCheckpoint = Callable[[], None]
"""Called by the first process once a checkpoint is complete."""


@dataclass(frozen=True)
class CheckpointFolder:
    """Where the checkpoints of one training lie."""

    path: Path
    every: int
    """Optimizer steps from one checkpoint to the next."""
    fingerprint: str
    """Digest of the training data, by which the checkpoints of another training are recognised."""
    on_checkpoint: OnCheckpoint | None = None

    def due(self, step: int, steps: int) -> bool:
        """Whether a checkpoint follows the step of this number, counted from 1; the last step always has one."""
        return step % self.every == 0 or step == steps

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, log: list[dict[str, float]]) -> None:
        """Write a checkpoint after the steps whose figures are given; the last two checkpoints are kept.

        To be called by all processes. The first one writes, and the others their parts of a model that is cut.
        """
        folder, first, cut = self.path / f"checkpoint-{len(log)}", processes().is_main_process, is_sharded(model)
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        if cut:
            processes().wait_for_everyone()
            write_parts({**trained, **moments(optimizer, model)}, folder / _PARTS)
        elif first:
            save_file({n: p.cpu().contiguous() for n, p in trained.items()}, folder / _TRAINED)
            save_moments(optimizer, model, folder)
        if first:
            self._complete(folder, log)
        if cut:
            processes().wait_for_everyone()

    def _complete(self, folder: Path, log: list[dict[str, float]]) -> None:
        progress = {"fingerprint": self.fingerprint, "log": log}
        (folder / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        seal(folder)
        for old in complete_checkpoints(self.path)[:-_KEPT]:
            shutil.rmtree(old)
        if self.on_checkpoint:
            self.on_checkpoint()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
        """Load the last complete and undamaged checkpoint; returns the figures of the steps that it has behind it.

        Raises ValueError if it belongs to other training data.
        """
        cut = is_sharded(model)
        last = agree(last_checkpoint(self.path)) if cut else last_checkpoint(self.path)
        if last is None:
            return []
        progress = json.loads((last / _PROGRESS).read_text(encoding="utf-8"))
        scores.check_fingerprint(last, progress["fingerprint"], self.fingerprint)
        if cut:
            read_parts({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, last / _PARTS)
            load_sharded_moments(optimizer, model, last / _PARTS)
        else:
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, value in load_file(last / _TRAINED).items():
                    parameters[name].copy_(value)
            load_moments(optimizer, model, last)
        log: list[dict[str, float]] = progress["log"]
        return log


def complete_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The complete checkpoints of a folder, the latest last."""
    folders = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(folders, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The latest complete checkpoint whose files have their digests. Damaged ones are named and passed over."""
    for checkpoint in reversed(complete_checkpoints(folder)):
        if _is_undamaged(checkpoint):
            return checkpoint
        say("training", f"{checkpoint.name} is damaged and is passed over")
    return None


def pack(folder: Path, target: Path) -> Path:
    """Write the last complete checkpoint of a folder, and the scores that lie beside it, into a tar file."""
    complete = complete_checkpoints(folder)
    if not complete:
        raise ValueError(f"{folder}: no complete checkpoint to pack; call this after one was written")
    files = sorted((f for f in complete[-1].rglob("*") if f.is_file()), key=lambda f: f.name == COMPLETE)
    with tarfile.open(target, "w") as tar:
        for file in [folder / scores.FILE] * (folder / scores.FILE).is_file() + files:  # the mark is last
            tar.add(file, file.relative_to(folder))
    return target


def unpack(source: Path, folder: Path) -> bool:
    """Unpack a file into an empty folder. A file that is short or damaged gives False and leaves the folder empty."""
    try:
        with tarfile.open(source) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, ValueError):  # a damaged header may name any size, time or path
        pass
    if last_checkpoint(folder):
        return True
    shutil.rmtree(folder)
    folder.mkdir()
    return False


def seal(checkpoint: Path) -> None:
    """Write the digests of all files of a checkpoint: the mark appears whole or not at all."""
    partial = checkpoint / f"{COMPLETE}.partial"
    partial.write_text(json.dumps(_digests(checkpoint)), encoding="utf-8")
    partial.replace(checkpoint / COMPLETE)


def _is_undamaged(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / COMPLETE).read_bytes()) == _digests(checkpoint))
    except ValueError:
        return False


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but the mark itself."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(COMPLETE))
    return {file.relative_to(checkpoint).as_posix(): sha256(file) for file in files}
