"""The optimizer: AdamW that keeps float32 weights behind bfloat16 ones, and its state in a model folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.adamw import adamw as update_weights

FILE = "training/optimizer.safetensors"
"""Its place in a model folder."""
_BUCKET = 1 << 26
"""Numbers that are updated in one call."""


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose arithmetic is float32 for bfloat16 weights too.

    A bfloat16 weight of the model is the upper half of a float32 weight, rounded; the lower half is kept in the state
    as `low`, so that updates too small for bfloat16 add up, and no weight is stored twice. Float32 weights are updated
    as torch.optim.AdamW does, to the same bits.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float) -> None:
        for weight in (w for group in groups for w in group["params"] if w.dtype == torch.bfloat16):
            weight.grad_dtype = torch.float32  # gradients of several forward passes add up in float32
        super().__init__(groups, {"betas": betas, "eps": 1e-8, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for bucket in _buckets([p for p in group["params"] if p.grad is not None]):
                self._update(bucket, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(w) for w in weights]
        full = [join_halves(w, s["low"]) if "low" in s else w for w, s in zip(weights, states, strict=True)]
        update_weights(
            full,
            [w.grad.float() for w in weights if w.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for weight, state, updated in zip(weights, states, full, strict=True):
            if "low" in state:
                split_halves(updated, weight, state["low"])

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
        if weight.dtype == torch.bfloat16 and "low" not in state:
            state["low"] = torch.zeros_like(weight, dtype=torch.int16)
        return state


def join_halves(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers of which `weight` (bfloat16) and `low` (int16) are the halves."""
    return ((weight.view(torch.int16).int() << 16) + low).view(torch.float32)


def split_halves(full: Tensor, weight: Tensor, low: Tensor) -> None:
    """Write float32 numbers into their halves: `weight` is rounded to nearest, `low` holds what is left."""
    bits = full.view(torch.int32)
    high = (bits + 0x8000) >> 16
    low.copy_(bits - (high << 16))
    weight.view(torch.int16).copy_(high)


def adamw(
    policy: nn.Module,
    learning_rate: float,
    head: nn.Module | None = None,
    head_rate: float = 0.0,
    weight_decay: float = 0.0,
) -> SplitAdamW:
    """AdamW (betas .9 and .98) over the trainable parameters of the policy and, at its own rate, of the value head."""
    groups = [{"params": [p for p in policy.parameters() if p.requires_grad], "lr": learning_rate}]
    if head is not None:
        groups.append({"params": list(head.parameters()), "lr": head_rate})
    return SplitAdamW(groups, betas=(0.9, 0.98), weight_decay=weight_decay)


def save_moments(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Write the optimizer's state, each entry under the name of its parameter."""
    state = {
        f"{key}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
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
            optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
