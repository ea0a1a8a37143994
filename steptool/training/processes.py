"""The processes that train together, and the sum of their gradients.

Every process takes its share of the forward passes of an optimizer step. With the whole model in each, gradients are
added up once per step, after the last pass, so a process may have fewer passes than another. Where the model is cut
over the processes (steptool.models.sharding) they compute every pass together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

T = TypeVar("T")
_BUCKET = 1 << 24
"""Numbers that are added up in one call."""


def processes() -> PartialState:
    """The processes that torchrun started, or this one alone: gloo between CPUs, nccl between GPUs."""
    return PartialState(cpu=not torch.cuda.is_available())


def cuts_models(sharding: str) -> bool:
    """Whether each process holds a part of a model alone; `sharding` is that of the section `ppo`."""
    return sharding == "fsdp" and processes().num_processes > 1


def agree(choice: T) -> T:
    """What the first process has chosen, in all of them."""
    if processes().num_processes == 1:
        return choice
    choices: list[T] = broadcast_object_list([choice])
    return choices[0]


def share_folder(folder: Path) -> Path:
    """The folder of the first process, which all processes write into. Raises ValueError where one does not see it."""
    shared = agree(folder)
    if processes().is_main_process:
        shared.mkdir(parents=True, exist_ok=True)
    processes().wait_for_everyone()
    if not shared.is_dir():
        raise ValueError(
            f"{shared}: this process does not see the folder that the first one has made; ppo.sharding: fsdp needs a "
            "disk in common: run the stage on one node, or with ppo.sharding: ddp"
        )
    return shared


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself where there is one process."""
    if processes().num_processes == 1:
        return tensor
    total: Tensor = reduce(tensor, "sum")
    return total


def max_over_processes(tensor: Tensor) -> Tensor:
    """The largest of each entry over all processes."""
    if processes().num_processes == 1:
        return tensor
    largest: Tensor = reduce(tensor, "max")
    return largest


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes. What has a gradient nowhere stays without one.

    Gradients of weights that are cut over the processes have been added up already.
    """
    state = processes()
    if state.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=state.device)
    used = [p for p, count in zip(trained, sum_over_processes(present).tolist(), strict=True) if count]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in used if p.grad is not None]):
        total = sum_over_processes(torch.cat([gradient.flatten() for gradient in bucket]))
        parts = torch.split(total, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
