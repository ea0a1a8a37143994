"""The optimizer: AdamW that keeps float32 weights behind bfloat16 ones, and its state in a model folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as update_weights

T = TypeVar("T")
FILE = "training/optimizer.safetensors"
"""Its place in a model folder."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET = {"cpu": 1 << 20, "cuda": 1 << 23}
"""Numbers that are updated in one call, if a float32 weight does not have more: six float32 copies of them exist at
once."""


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose arithmetic is float32 for bfloat16 weights too.

    Where a weight is cut over processes, each process updates its part, and its state holds that part alone.

    A bfloat16 weight of the model is the upper half of a float32 weight, rounded; the lower half is kept in the state
    as `low`, so that updates too small for bfloat16 add up, and no weight is stored twice. Float32 weights are updated
    as torch.optim.AdamW does, to the same bits. Moments of bfloat16 weights are kept in the precision `moments`: in
    bfloat16 they are rounded after every step, by less than a decay of .98 changes them.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        weight_decay: float,
        moments: torch.dtype = torch.float32,
    ) -> None:
        for weight in (w for group in groups for w in group["params"] if w.dtype == torch.bfloat16):
            weight.grad_dtype = torch.float32  # gradients of several forward passes add up in float32
        super().__init__(groups, {"betas": betas, "eps": 1e-8, "weight_decay": weight_decay})
        self._moments = moments

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            states = {w: self._open_state(w) for w in weights}
            parts = [part for w in weights for part in _split_weight(w, states[w])]
            for bucket in fill_buckets(parts, lambda part: part.weight.numel() / _get_bucket_size(part.weight), 1.0):
                _update(bucket, group)
            for state in states.values():
                state["step"] += 1

    def _open_state(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        dtype = self._moments if weight.dtype == torch.bfloat16 else torch.float32
        for key in _MOMENTS:
            state[key] = state[key].to(dtype) if key in state else torch.zeros_like(get_local_part(weight), dtype=dtype)
        if weight.dtype == torch.bfloat16 and "low" not in state:
            state["low"] = torch.zeros_like(weight, dtype=torch.int16)
        return state


def get_local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself if it is not cut over processes."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def join_halves(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers of which `weight` (bfloat16) and `low` (int16) are the halves."""
    bits = weight.view(torch.int16).int()
    return bits.bitwise_left_shift_(16).add_(low).view(torch.float32)


def split_halves(full: Tensor, weight: Tensor, low: Tensor) -> None:
    """Write float32 numbers into their halves: `weight` is rounded to nearest, `low` holds what is left."""
    bits = full.view(torch.int32)
    high = (bits + 0x8000).bitwise_right_shift_(16)
    weight.view(torch.int16).copy_(high)
    low.copy_(bits - high.bitwise_left_shift_(16))


def make_adamw(
    policy: nn.Module,
    learning_rate: float,
    head: nn.Module | None = None,
    head_rate: float = 0.0,
    weight_decay: float = 0.0,
    moments: Literal["float32", "bfloat16"] = "float32",
) -> SplitAdamW:
    """AdamW (betas .9 and .98) over the trainable parameters of the policy and, at its own rate, of the value head.

    `moments` is the precision of the moments of bfloat16 weights.
    """
    groups = [{"params": [p for p in policy.parameters() if p.requires_grad], "lr": learning_rate}]
    if head is not None:
        groups.append({"params": list(head.parameters()), "lr": head_rate})
    return SplitAdamW(groups, betas=(0.9, 0.98), weight_decay=weight_decay, moments=getattr(torch, moments))


def save_moments(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path, *, half: bool = False) -> None:
    """Write the optimizer's state, each entry under the name of its parameter. `half`: the moments in bfloat16."""
    dtypes = dict.fromkeys(_MOMENTS, torch.bfloat16) if half else {}
    state = {
        f"{key}/{name}": torch.as_tensor(value).detach().to("cpu", dtypes.get(key)).contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file(state, folder / FILE)


def load_moments(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Restore what `save_moments` wrote, where the folder has it. Parameters without an entry start fresh."""
    if not (folder / FILE).is_file():
        return
    parameters = dict(model.named_parameters())
    for entry, value in load_file(folder / FILE).items():
        key, name = entry.split("/", 1)
        if name in parameters:
            if key == "low":
                value = value.view(torch.int16)  # several processes write the same bits as float16
            elif key == "step":
                value = value.reshape(())
            dtype = torch.float32 if key in _MOMENTS else value.dtype
            optimizer.state[parameters[name]][key] = value.to(parameters[name].device, dtype)


@dataclass(frozen=True)
class _Part:
    """A weight or a part of one, with what belongs to it."""

    weight: Tensor
    gradient: Tensor
    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    low: Tensor | None = None


def _split_weight(weight: Tensor, state: dict[str, Tensor]) -> Iterator[_Part]:
    """A float32 weight whole; a bfloat16 weight in parts, so that few float32 copies exist at once."""
    if weight.grad is None:
        return
    part, gradient = get_local_part(weight), get_local_part(weight.grad)
    step, moments = state["step"], (state["exp_avg"], state["exp_avg_sq"])
    if "low" not in state:
        yield _Part(part, gradient.float(), step.clone(), *moments)
        return
    size = _get_bucket_size(weight)
    tensors = [torch.split(t.reshape(-1), size) for t in (part, gradient, *moments, state["low"])]
    for part, gradient, exp_avg, exp_avg_sq, low in zip(*tensors, strict=True):
        yield _Part(part, gradient, step.clone(), exp_avg, exp_avg_sq, low)


def _update(parts: list[_Part], group: dict[str, Any]) -> None:
    full = [p.weight if p.low is None else join_halves(p.weight, p.low) for p in parts]
    first, second = [p.exp_avg.float() for p in parts], [p.exp_avg_sq.float() for p in parts]
    update_weights(
        full,
        [p.gradient.float() for p in parts],
        first,
        second,
        [],
        [p.step for p in parts],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    for part, updated, exp_avg, exp_avg_sq in zip(parts, full, first, second, strict=True):
        if part.low is not None:
            split_halves(updated, part.weight, part.low)
            part.exp_avg.copy_(exp_avg)  # the same tensor where the moments are float32
            part.exp_avg_sq.copy_(exp_avg_sq)


def fill_buckets(items: Iterable[T], measure: Callable[[T], float], limit: float) -> Iterator[list[T]]:
    """The items in their order, as many at a time as have the size `limit` together; a larger one comes alone."""
    bucket: list[T] = []
    filled = 0.0
    for item in items:
        size = measure(item)
        if bucket and filled + size > limit:
            yield bucket
            bucket, filled = [], 0.0
        bucket.append(item)
        filled += size
    if bucket:
        yield bucket


def _get_bucket_size(weight: Tensor) -> int:
    return _BUCKET.get(weight.device.type, _BUCKET["cpu"])
