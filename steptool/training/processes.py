"""How the work of an optimizer step is divided over forward passes and over processes that train together.

Which sequences make a step, and which of them share a forward pass on which process, is decided before. Every process
takes its share of the passes. With the whole model in each, gradients are added up once per step, after the last
pass, so a process may have fewer passes than another. Where the model is cut over the processes
(steptool.models.sharding) they compute every pass together.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from steptool.models.actor import Indices
from steptool.models.optimizer import fill_buckets


def count_updates(count: int, batch_size: int) -> int:
    """Optimizer steps for one pass over `count` sequences."""
    return math.ceil(count / batch_size)


def draw_mini_batches(count: int, batch_size: int, epochs: int, seed: int) -> list[Indices]:
    """Sequences of each optimizer step: `epochs` shuffled passes, cut into equal parts of at most `batch_size`."""
    rng = np.random.default_rng(seed)
    parts = count_updates(count, batch_size)
    return [part for _ in range(epochs) for part in np.array_split(rng.permutation(count), parts)]


def draw_equal_steps(count: int, batch_size: int, pass_size: int, epochs: int, seed: int) -> list[Indices]:
    """Pairs of each optimizer step: `epochs` shuffled passes over `count` pairs, in steps of the same size.

    The size is at most `batch_size`, but for rounding up to whole forward passes of at most `pass_size` on every
    process. TRL averages over these, so all of them have to be of one size. The last step of a pass over the pairs is
    filled up from a further shuffled pass.
    """
    rng = np.random.default_rng(seed)
    steps, number = count_updates(count, batch_size), get_processes().num_processes
    share = math.ceil(count / (steps * number))
    passes = math.ceil(share / pass_size)
    size = math.ceil(share / passes) * passes * number
    shuffles = math.ceil(steps * size / count)
    orders = [np.concatenate([rng.permutation(count) for _ in range(shuffles)]) for _ in range(epochs)]
    return [order[start : start + size] for order in orders for start in range(0, steps * size, size)]


def draw_grouped_batches(lengths: Indices, batch_size: int, steps: int, seed: int) -> list[Indices]:
    """Sequences of `steps` optimizer steps: shuffled passes, in batches of similar length and random order.

    Lengths are compared within windows of 8 batches, so that a batch is not the same in every pass.
    """
    rng = np.random.default_rng(seed)
    parts, window = count_updates(len(lengths), batch_size), 8 * batch_size
    batches: list[Indices] = []
    while len(batches) < steps:
        order = rng.permutation(len(lengths))
        windows = [order[i : i + window] for i in range(0, len(order), window)]
        by_length = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])
        groups = np.array_split(by_length, parts)
        batches += [groups[i] for i in rng.permutation(parts)]
    return batches[:steps]


@dataclass(frozen=True)
class PassLimit:
    """How much goes through the model in one forward pass on one process."""

    sequences: int
    """Most sequences of a pass; ignored where the tokens are limited."""
    tokens: int = 0
    """Most tokens of a pass, padding included. A longer sequence has a pass of its own. 0: no limit."""
    packed: bool = False
    """Whether sequences are packed end to end, so that there is no padding."""


def cut_forward_passes(batch: Indices, lengths: Indices, limit: PassLimit, processes: int = 1) -> list[Indices]:
    """Cut a mini-batch into forward passes of sequences of similar length; process i takes passes[i::processes].

    Some of them may be empty where there are fewer sequences than processes.
    """
    by_length = batch[np.argsort(lengths[batch], kind="stable")]
    if not limit.tokens:
        count = math.ceil(len(batch) / (limit.sequences * processes)) * processes
        return np.array_split(by_length, count)
    passes: list[list[int]] = []
    for row in by_length[::-1]:  # from the longest on, so that the first of a pass is its longest
        for rows in passes if limit.packed else passes[-1:]:
            tokens = lengths[rows].sum() + lengths[row] if limit.packed else lengths[rows[0]] * (len(rows) + 1)
            if tokens <= limit.tokens:
                rows.append(row)
                break
        else:
            passes.append([row])
    return [np.array(rows, dtype=np.int64) for rows in passes]


def share_passes(passes: list[Indices], index: int, count: int, *, together: bool) -> Iterator[tuple[Indices, bool]]:
    """The forward passes of process `index` of `count`, each with whether its result counts.

    `together`: processes that hold parts of one model need as many passes each, and one that lacks a pass repeats
    another, which does not count.
    """
    own = [rows for rows in passes[index::count] if len(rows)]
    yield from ((rows, True) for rows in own)
    if together:
        spare = min(filter(len, passes), key=len)
        yield from [(spare, False)] * (math.ceil(len(passes) / count) - len(own))


def find_packed_places(counts: Indices) -> list[Indices]:
    """Places of each sequence's action tokens among those of all sequences, packed end to end."""
    return np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])


T = TypeVar("T")
_BUCKET = 1 << 24
"""Numbers that are added up in one call."""


_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, of which the first one may have a large checkpoint to store."""


def get_processes() -> PartialState:
    """The processes that torchrun started, or this one alone: gloo between CPUs, nccl between GPUs."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def cuts_models(sharding: str) -> bool:
    """Whether each process holds only a part of a model; `sharding` is the field of the section `ppo`."""
    return sharding == "fsdp" and get_processes().num_processes > 1


def agree(choice: T) -> T:
    """The value that the first process has chosen, in all processes."""
    if get_processes().num_processes == 1:
        return choice
    choices: list[T] = broadcast_object_list([choice])
    return choices[0]


def share_folder(folder: Path) -> Path:
    """The folder of the first process, which all processes write into. Raises ValueError where one does not see it."""
    shared = agree(folder)
    if get_processes().is_main_process:
        shared.mkdir(parents=True, exist_ok=True)
    get_processes().wait_for_everyone()
    if not shared.is_dir():
        raise ValueError(
            f"{shared}: this process does not see the folder that the first one has made; ppo.sharding: fsdp needs a "
            "disk in common: run the stage on one node, or with ppo.sharding: ddp"
        )
    return shared


def pass_on(model_dir: Path, out_dir: Path) -> None:
    """Copy a model folder that training leaves as it is; the first process copies, and the others wait for it."""
    if get_processes().is_main_process:
        shutil.copytree(model_dir, out_dir, dirs_exist_ok=True)
    get_processes().wait_for_everyone()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself where there is one process."""
    if get_processes().num_processes == 1:
        return tensor
    total: Tensor = reduce(tensor, "sum")
    return total


def take_maxima(tensor: Tensor) -> Tensor:
    """The largest of each entry over all processes."""
    if get_processes().num_processes == 1:
        return tensor
    largest: Tensor = reduce(tensor, "max")
    return largest


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes. A parameter without a gradient anywhere stays so.

    Gradients of weights that are cut over the processes have been added up already.
    """
    state = get_processes()
    if state.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=state.device)
    used = [p for p, count in zip(trained, sum_over_processes(present).tolist(), strict=True) if count]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in fill_buckets((p.grad for p in used if p.grad is not None), Tensor.numel, _BUCKET):
        total = sum_over_processes(torch.cat([gradient.flatten() for gradient in bucket]))
        parts = torch.split(total, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
