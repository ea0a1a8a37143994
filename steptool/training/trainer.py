"""The training loop: planned optimizer steps on one model, alone or together with other processes.

Which sequences make an optimizer step is decided before it starts, and nothing is drawn while it runs. A loss is
divided by a number of its whole optimizer step, so neither the cut into forward passes nor the number of processes
changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from steptool.models.actor import Actor, Indices, Spanned, action_places, collate
from steptool.models.sharding import is_sharded
from steptool.training.algorithms.base import ForwardPass, LossTerms, Objective
from steptool.training.checkpoints import CheckpointFolder
from steptool.training.processes import (
    PassLimit,
    forward_passes,
    max_over_processes,
    packed_places,
    processes,
    share_passes,
    sum_gradients,
    sum_over_processes,
)

OnStep = Callable[[int, float], None]
"""Called after each optimizer step with the number of steps done and the loss."""
Figures = dict[str, float]


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
    """Trains one model on token sequences, in units of as many as the objective takes together."""

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
        size = objective.unit
        self.units = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        self.settings = settings
        self.checkpoints = checkpoints
        self.on_step = on_step
        lengths = [size * max(len(row.input_ids) for row in unit) for unit in self.units]  # padding included
        self.lengths = np.array(lengths, dtype=np.int64)
        tokens = [sum(len(action_places(row)) for row in unit) for unit in self.units]
        self.action_tokens = np.array(tokens, dtype=np.int64)
        self._places = packed_places(self.action_tokens)
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
            if self.checkpoints and self.checkpoints.due(number + 1, len(steps)):
                self.checkpoints.save(self.actor, self.optimizer, log)
        return log

    def _step(self, number: int, rows: Indices) -> Figures:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.settings.schedule(number)
        meter = Meter(self.objective)
        for part in self._passes(rows):
            terms = self.objective.loss(self.actor, part)
            (terms.loss if part.counts else 0.0 * terms.loss).backward()  # type: ignore[no-untyped-call]
            if part.counts:
                meter.add(terms)
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

    def _passes(self, rows: Indices) -> Iterator[ForwardPass]:
        """The forward passes of an optimizer step that fall to this process."""
        state = processes()
        step_places = self._tensor(rows)
        limit = self.settings.limit
        limit = replace(limit, sequences=max(1, limit.sequences // self.objective.unit))
        parts = forward_passes(rows, self.lengths, limit, state.num_processes)
        for part, counts in share_passes(parts, state.process_index, state.num_processes, together=self._together):
            batch = collate([row for i in part for row in self.units[i]], limit.packed).to(state.device)
            yield ForwardPass(batch, self._tensor(part), step_places, counts)

    def _tensor(self, rows: Indices) -> Tensor:
        return torch.from_numpy(np.concatenate([self._places[i] for i in rows])).to(processes().device)

    def _clip(self) -> float:
        """Clip the gradients; returns the norm of the policy's before that."""
        if self.actor.head is not None:
            nn.utils.clip_grad_norm_(self.actor.head.parameters(), self.settings.max_grad_norm)
        norm = nn.utils.clip_grad_norm_(self.actor.policy.parameters(), self.settings.max_grad_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class Meter:
    """Adds up the figures of an optimizer step over its forward passes and processes."""

    def __init__(self, objective: Objective) -> None:
        device = processes().device
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
        sums, maxima = sum_over_processes(self._sums), max_over_processes(self._maxima)
        return dict(zip((*self._names[0], *self._names[1]), [*sums.tolist(), *maxima.tolist()], strict=True))


def check_finite(number: int, figures: Figures) -> None:
    """Raise DivergedError naming the optimizer step and the first figure that is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"update {number}: {name} is {value}; the training has diverged and nothing of it was saved; lower the "
                "learning rate or max_grad_norm, and look at the rewards of this round"
            )
