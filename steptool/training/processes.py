"""The processes that train together, and the sum of their gradients.

Every process holds the whole model and takes its share of the forward passes of an optimizer step. Gradients are added
up once per step, after the last pass, so a process may have fewer passes than another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

_BUCKET = 1 << 24
"""Numbers that are added up in one call."""


def processes() -> PartialState:
    """The processes that torchrun started, or this one alone: gloo between CPUs, nccl between GPUs."""
    return PartialState(cpu=not torch.cuda.is_available())


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
    """Replace each gradient by its sum over all processes. What has a gradient nowhere stays without one."""
    state = processes()
    if state.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
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
