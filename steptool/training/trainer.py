"""The training loop: planned optimizer steps on one model, alone or together with other processes, and its checkpoints.

An `Objective` is what the steps minimise: the loss of an algorithm (steptool.training.algorithms), or `Supervised`.
Which sequences make an optimizer step is decided before it starts, and nothing is drawn while it runs. A loss is
divided by a number of its whole optimizer step, so neither the cut into forward passes nor the number of processes
changes the result.

A checkpoint is the state between two optimizer steps, in a folder or packed into one file to store elsewhere. It holds
the trained parameters, the optimizer's state and the figures of the steps so far, and no pickles. It counts once it is
complete, and as long as every file has the digest that was written with it. Of a model that is cut over processes each
writes its parts, and any number of processes go on from them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from steptool.artifacts.lineage import hash_file
from steptool.artifacts.metrics import say
from steptool.models.actor import Actor, Indices, Spanned, TokenBatch, collate, find_action_places
from steptool.models.optimizer import load_moments, save_moments
from steptool.models.sharding import is_sharded, load_sharded_moments, read_moments, read_parts, write_parts
from steptool.records.tables import write_text
from steptool.training import scores
from steptool.training.processes import (
    PassLimit,
    agree,
    cut_forward_passes,
    find_packed_places,
    get_processes,
    share_passes,
    sum_gradients,
    sum_over_processes,
    take_maxima,
)

COMPLETE = "complete"
"""File with the SHA-256 of every other file of a checkpoint; it is written after all of them."""
_TRAINED = "trained.safetensors"
_PROGRESS = "progress.json"
_PARTS = "parts"
"""Folder of the parts of a model that is cut over processes."""
_KEPT = 2
OnCheckpoint = Callable[[], None]
"""Called by the first process once a checkpoint is complete."""
OnStep = Callable[[int, float], None]
"""Called after each optimizer step with the number of steps done and the loss."""
Figures = dict[str, float]


@dataclass(frozen=True)
class CheckpointFolder:
    """Where the checkpoints of one training lie."""

    path: Path
    every: int
    """Optimizer steps from one checkpoint to the next."""
    fingerprint: str
    """Digest of the training data, by which the checkpoints of another training are recognised."""
    on_checkpoint: OnCheckpoint | None = None

    def is_due(self, step: int, steps: int) -> bool:
        """Whether a checkpoint follows the step of this number, counted from 1; the last step always has one."""
        return step % self.every == 0 or step == steps

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, log: list[dict[str, float]]) -> None:
        """Write a checkpoint after the steps whose figures are given; the last two checkpoints are kept.

        To be called by all processes. The first one writes, and the others their parts of a model that is cut.
        """
        folder, first, cut = self.path / f"checkpoint-{len(log)}", get_processes().is_main_process, is_sharded(model)
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        if cut:
            get_processes().wait_for_everyone()
            write_parts({**trained, **read_moments(optimizer, model)}, folder / _PARTS)
        elif first:
            save_file({n: p.cpu().contiguous() for n, p in trained.items()}, folder / _TRAINED)
            save_moments(optimizer, model, folder)
        if first:
            self._complete(folder, log)
        if cut:
            get_processes().wait_for_everyone()

    def _complete(self, folder: Path, log: list[dict[str, float]]) -> None:
        progress = {"fingerprint": self.fingerprint, "log": log}
        (folder / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        seal(folder)
        for old in list_complete_checkpoints(self.path)[:-_KEPT]:
            shutil.rmtree(old)
        if self.on_checkpoint:
            self.on_checkpoint()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
        """Load the last complete and undamaged checkpoint; returns the figures of the steps before it.

        Raises ValueError if it belongs to other training data.
        """
        cut = is_sharded(model)
        last = agree(find_last_checkpoint(self.path)) if cut else find_last_checkpoint(self.path)
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


def list_complete_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The complete checkpoints of a folder, the latest last."""
    folders = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(folders, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def find_last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The latest complete checkpoint whose files match their digests. Damaged ones are named and skipped."""
    for checkpoint in reversed(list_complete_checkpoints(folder)):
        if _is_undamaged(checkpoint):
            return checkpoint
        say("training", f"{checkpoint.name} is damaged and is passed over")
    return None


def pack(folder: Path, target: Path) -> Path:
    """Write the last complete checkpoint of a folder, and the scores that lie beside it, into a tar file."""
    complete = list_complete_checkpoints(folder)
    if not complete:
        raise ValueError(f"{folder}: no complete checkpoint to pack; call this after one was written")
    files = [file for file in (folder / scores.FILE, *complete[-1].rglob("*")) if file.is_file()]
    with tarfile.open(target, "w") as tar:
        for file in sorted(files, key=lambda file: file.name == COMPLETE):  # the mark is last
            tar.add(file, file.relative_to(folder))
    return target


def unpack(source: Path, folder: Path) -> bool:
    """Unpack a file into an empty folder. A file that is short or damaged gives False and leaves the folder empty."""
    try:
        with tarfile.open(source) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, ValueError):  # a damaged header may name any size, time or path
        pass
    if find_last_checkpoint(folder):
        return True
    shutil.rmtree(folder)
    folder.mkdir()
    return False


def seal(checkpoint: Path) -> None:
    """Write the digests of all files of a checkpoint: the mark appears whole or not at all."""
    write_text(checkpoint / COMPLETE, json.dumps(_hash_files(checkpoint)))


def _is_undamaged(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / COMPLETE).read_bytes()) == _hash_files(checkpoint))
    except ValueError:
        return False


def _hash_files(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but the mark itself."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(COMPLETE))
    return {file.relative_to(checkpoint).as_posix(): hash_file(file) for file in files}


@dataclass(frozen=True)
class ForwardPass:
    """Sequences that go through the model together, as a part of an optimizer step."""

    batch: TokenBatch
    places_n: Tensor
    """Place of each action token of the batch among all action tokens of the training data, packed end to end."""
    step_places_n: Tensor
    """The same of all action tokens of the optimizer step, over all its passes and processes."""
    counts: bool = True
    """False: a repeated pass that keeps the processes of a sharded model together; nothing is learned from it."""


class LossTerms(NamedTuple):
    """The result of one forward pass."""

    loss: Tensor
    """This pass's share of the loss of its optimizer step: a sum over its tokens, divided by a number of the step."""
    sums: Mapping[str, Tensor] = {}
    """Figures that are added up over the passes and processes of an optimizer step."""
    maxima: Mapping[str, Tensor] = {}
    """Figures of which the largest counts."""


class Objective(ABC):
    """A loss, and the figures of an optimizer step that come with it."""

    sums: ClassVar[tuple[str, ...]] = ()
    """Names of the sums in its LossTerms."""
    maxima: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """Run the model on one forward pass. The losses of the passes of a step add up to that of the step."""

    def report(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Metrics of an optimizer step from the sums and maxima of its passes."""
        return {}


class Supervised(Objective):
    """Mean negative log-likelihood of the action tokens of an optimizer step (nats per token)."""

    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """The pass's share of the mean."""
        return LossTerms(-actor(part.batch).log_probs_N.sum() / float(len(part.step_places_n)))


class DivergedError(RuntimeError):
    """A training whose loss or gradient is not a finite number any more."""


@dataclass(frozen=True)
class Settings:
    """How the optimizer steps are made."""

    limit: PassLimit
    max_grad_norm: float
    """Norm at which the gradients of the policy, and of the value head, are clipped, each on their own."""
    schedule: Callable[[int], float] = lambda step: 1.0
    """Factor of the learning rates in an optimizer step, counted from 0."""


def warm_up_and_cosine(steps: int, warmup: int, lowest: float = 0.1) -> Callable[[int], float]:
    """A schedule that rises linearly from 0 over the warmup and falls along a cosine to the share `lowest`."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * progress)) * (1.0 - lowest) + lowest

    return factor


class Trainer:
    """Trains one model on token sequences."""

    def __init__(
        self,
        actor: Actor,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        sequences: Sequence[Spanned],
        settings: Settings,
        checkpoints: CheckpointFolder | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.actor = actor
        self.optimizer = optimizer
        self.objective = objective
        self.sequences = sequences
        self.settings = settings
        self.checkpoints = checkpoints
        self.on_step = on_step
        self.lengths = np.array([len(row.input_ids) for row in sequences], dtype=np.int64)
        self.action_tokens = np.array([len(find_action_places(row)) for row in sequences], dtype=np.int64)
        self._places = find_packed_places(self.action_tokens)
        actor.accumulate_gradients()
        self._together = is_sharded(actor)
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def train(self, steps: Sequence[Indices]) -> list[Figures]:
        """Make the optimizer steps, each on the sequences that it names; returns the figures of every step.

        After an interruption it goes on from the last complete checkpoint. Raises DivergedError.
        """
        log = self.checkpoints.restore(self.actor, self.optimizer) if self.checkpoints else []
        for number in range(len(log), len(steps)):
            log.append(self._step(number, steps[number]))
            if self.on_step:
                self.on_step(number + 1, log[-1]["loss"])
            if self.checkpoints and self.checkpoints.is_due(number + 1, len(steps)):
                self.checkpoints.save(self.actor, self.optimizer, log)
        return log

    def _step(self, number: int, rows: Indices) -> Figures:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.settings.schedule(number)
        meter = Meter(self.objective)
        for part in self._cut_passes(rows):
            terms = self.objective.loss(self.actor, part)
            self.actor.release_memory()
            (terms.loss if part.counts else 0.0 * terms.loss).backward()  # type: ignore[no-untyped-call]
            if part.counts:
                meter.add(terms)
            self.actor.release_memory()
        figures = meter.read()
        sum_gradients(self.actor.parameters())
        norm = self._clip()
        check_finite(number, {"loss": figures["loss"], "grad_norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        rate = self.optimizer.param_groups[0]["lr"]
        return {
            "loss": figures["loss"], "learning_rate": rate, "grad_norm": norm, **self.objective.report(figures)
        }  # fmt: skip

    def _cut_passes(self, rows: Indices) -> Iterator[ForwardPass]:
        """The forward passes of an optimizer step that fall to this process."""
        state = get_processes()
        step_places = self._make_tensor(rows)
        limit = self.settings.limit
        parts = cut_forward_passes(rows, self.lengths, limit, state.num_processes)
        for part, counts in share_passes(parts, state.process_index, state.num_processes, together=self._together):
            batch = collate([self.sequences[i] for i in part], limit.packed).to(state.device)
            yield ForwardPass(batch, self._make_tensor(part), step_places, counts)

    def _make_tensor(self, rows: Indices) -> Tensor:
        return torch.from_numpy(np.concatenate([self._places[i] for i in rows])).to(get_processes().device)

    def _clip(self) -> float:
        """Clip the gradients; returns the norm of the policy's before that."""
        if self.actor.head is not None:
            nn.utils.clip_grad_norm_(self.actor.head.parameters(), self.settings.max_grad_norm)
        norm = nn.utils.clip_grad_norm_(self.actor.policy.parameters(), self.settings.max_grad_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class Meter:
    """Adds up the figures of an optimizer step over its forward passes and processes."""

    def __init__(self, objective: Objective) -> None:
        device = get_processes().device
        self._names = ("loss", *objective.sums), objective.maxima
        self._sums = torch.zeros(len(self._names[0]), dtype=torch.float64, device=device)
        self._maxima = torch.zeros(len(self._names[1]), dtype=torch.float64, device=device)

    def add(self, terms: LossTerms) -> None:
        """Add one forward pass."""
        sums, maxima = {"loss": terms.loss.detach(), **terms.sums}, terms.maxima
        self._sums += torch.stack([sums[name].double() for name in self._names[0]])
        if maxima:
            latest = torch.stack([maxima[name].double() for name in self._names[1]])
            self._maxima = torch.maximum(self._maxima, latest)

    def read(self) -> Figures:
        """The figures over all processes."""
        sums, maxima = sum_over_processes(self._sums), take_maxima(self._maxima)
        return dict(zip((*self._names[0], *self._names[1]), [*sums.tolist(), *maxima.tolist()], strict=True))


def check_finite(number: int, figures: Figures) -> None:
    """Raise DivergedError naming the optimizer step and the first figure that is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"update {number}: {name} is {value}; the training has diverged and nothing of it was saved; lower the "
                "learning rate or max_grad_norm, and look at the rewards of this round"
            )
