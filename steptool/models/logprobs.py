"""Log-probabilities of chosen tokens from hidden states, in float32 whatever the precision of the model.

With a small vocabulary the logits of the action tokens are simply computed. With a large one they are made in tiles
of the vocabulary, a second time in the backward pass, so that [N, V] numbers are never held at once. Both ways give
the same numbers. The gradients of both tables of the size of a large vocabulary, output layer and embedding, can be
added up in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

SMALL_VOCABULARY = 16384
"""Up to this many tokens the logits are held in memory (N = 8000 action tokens: 0.5 GB in float32)."""
_TILE_NUMBERS = {"cpu": 2 << 20, "cuda": 128 << 20}
"""Logits in a tile: 8 MB on a CPU, 512 MB on a GPU."""


@dataclass(frozen=True)
class LogitTransform:
    """What lies between the output layer and the softmax: z = cap * tanh(scale * logits / cap) / temperature."""

    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    def apply(self, logits: Tensor) -> Tensor:
        """Transform float32 logits in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits.div_(self.temperature) if self.temperature != 1.0 else logits

    def chain(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """The gradient of the logits, in place, from that of the transformed logits."""
        if self.cap is not None:
            gradient.mul_(1.0 - (transformed * (self.temperature / self.cap)).square_())
        factor = self.scale / self.temperature
        return gradient.mul_(factor) if factor != 1.0 else gradient


@dataclass(frozen=True)
class TileWays:
    """Options of the work on tiles of logits."""

    fused: bool = False
    """Compile the work on logits into few kernels (GPU)."""
    accumulate: bool = False
    """Add the gradient of the output layer to its `.grad` tile by tile, in place of handing it to autograd.

    This saves a tensor of the size of the vocabulary. It is for `backward` on a leaf, not for torch.autograd.grad.
    """


def compute_token_log_probs(
    lm: PreTrainedModel, hidden_NH: Tensor, targets_N: Tensor, temperature: float = 1.0, ways: TileWays | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, both [N] in nats, float32.

    `hidden_NH` are the backbone's last hidden states at the positions just before the targets. Gradients flow through
    the log-probabilities only; the entropy is for reading. Both are those of softmax(logits / temperature). `ways` is
    for large vocabularies.
    """
    head: Any = lm.get_output_embeddings()
    transform = read_logit_transform(lm, temperature)
    if not has_large_vocabulary(lm):
        bias = None if head.bias is None else head.bias.float()
        return _compute_plainly(functional.linear(hidden_NH.float(), head.weight.float(), bias), targets_N, transform)
    log_probs_N, entropy_N = _TiledLogProbs.apply(
        hidden_NH, head.weight, head.bias, targets_N, transform, ways or TileWays()
    )  # type: ignore[no-untyped-call]
    return log_probs_N, entropy_N


def has_large_vocabulary(lm: PreTrainedModel) -> bool:
    """Whether the logits of a model are made in tiles, so that the gradients of its two tables can add up in place."""
    head: Any = lm.get_output_embeddings()
    return bool(head.weight.shape[0] > SMALL_VOCABULARY)


def read_logit_transform(lm: PreTrainedModel, temperature: float) -> LogitTransform:
    """Factor and soft cap that some architectures put between the output layer and the softmax."""
    config: Any = lm.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return LogitTransform(float(getattr(config, name)), cap, temperature)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        scale = float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)
        return LogitTransform(scale, cap, temperature)
    return LogitTransform(1.0, cap, temperature)


def unwrap_model(policy: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a policy that may be wrapped by peft (adapters stay where they are)."""
    lm: PreTrainedModel = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # type: ignore[operator]
    return lm


def _compute_plainly(logits_NV: Tensor, targets_N: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor]:
    if transform.scale != 1.0:
        logits_NV = logits_NV * transform.scale
    if transform.cap is not None:
        logits_NV = transform.cap * torch.tanh(logits_NV / transform.cap)
    log_softmax_NV = functional.log_softmax(logits_NV / transform.temperature, dim=-1)
    with torch.no_grad():
        entropy_N = -torch.linalg.vecdot(log_softmax_NV.exp(), log_softmax_NV)
    return log_softmax_NV.gather(-1, targets_N[:, None]).squeeze(-1).clone(), entropy_N  # FSDP wants no view


class _TiledLogProbs(torch.autograd.Function):
    """(log-probabilities [N], entropies [N]) of targets; the logits are made tile by tile, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        transform: LogitTransform,
        ways: TileWays,
    ) -> tuple[Tensor, Tensor]:
        zeros_N = torch.zeros(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        chosen_N, sums = zeros_N, _Sums(zeros_N - torch.inf, zeros_N, zeros_N)
        tiles = _Tiles(hidden_NH, weight_VH, bias_V)
        add = _compile(_add_tile) if ways.fused else _add_tile_in_place
        for tile in tiles.slices():
            logits_NT = tiles.logits(tile)
            place_N = targets_N - tile.start
            inside_N = (place_N >= 0) & (place_N < logits_NT.shape[1])
            own_N = logits_NT.gather(1, place_N.clamp(0, logits_NT.shape[1] - 1)[:, None])[:, 0]
            chosen_N = torch.where(inside_N, own_N, chosen_N)
            sums = add(logits_NT, tiles.scratch(tile), sums, transform)
        normaliser_N = sums.largest_N + sums.total_N.log()
        entropy_N = normaliser_N - sums.weighted_N / sums.total_N
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, normaliser_N)
        ctx.options = transform, ways, weight_VH
        ctx.mark_non_differentiable(entropy_N)
        return transform.apply(chosen_N) - normaliser_N, entropy_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, normaliser_N = ctx.saved_tensors
        transform, ways, parameter = ctx.options
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_grad_NH = torch.zeros_like(hidden_NH, dtype=torch.float32) if needs_hidden else None
        weight_grad_VH = None
        if needs_weight:
            weight_grad_VH = _get_gradient(parameter) if ways.accumulate else torch.empty_like(weight_VH)
        bias_grad_V = torch.empty_like(bias_V) if needs_bias else None
        tiles = _Tiles(hidden_NH, weight_VH, bias_V)
        differentiate = _compile(_differentiate_tile) if ways.fused else _differentiate_tile_in_place
        for tile in tiles.slices():
            grad_NT = differentiate(
                tiles.logits(tile), tiles.scratch(tile), normaliser_N, gradient_N, targets_N - tile.start, transform,
                weight_VH.dtype,
            )  # fmt: skip
            if bias_grad_V is not None:
                bias_grad_V[tile] = grad_NT.sum(0)
            if hidden_grad_NH is not None:
                _add_product(hidden_grad_NH, grad_NT, weight_VH[tile])
            if weight_grad_VH is not None and ways.accumulate:
                _add_product(weight_grad_VH[tile], grad_NT.T, hidden_NH)
            elif weight_grad_VH is not None:
                torch.mm(grad_NT.T, hidden_NH, out=weight_grad_VH[tile])
        hidden_grad = None if hidden_grad_NH is None else hidden_grad_NH.to(hidden_NH.dtype)
        return hidden_grad, None if ways.accumulate else weight_grad_VH, bias_grad_V, None, None, None


class AccumulatingEmbedding(nn.Embedding):
    """An embedding whose gradient is added to its `.grad` in place, in the rows of the tokens that were looked up.

    This saves a tensor of the size of the vocabulary. It is for `backward` on a leaf, not for torch.autograd.grad.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Rows [*, H] of token ids [*]."""
        rows: Tensor = _Lookup.apply(input, self.weight, self.padding_idx)  # type: ignore[no-untyped-call]
        return rows


class _Lookup(torch.autograd.Function):
    """Rows [*, H] of a table [V, H]; the row of the token `padding`, if there is one, has no gradient."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VH: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.options = weight_VH, padding
        return functional.embedding(ids, weight_VH)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (ids,), (parameter, padding) = ctx.saved_tensors, ctx.options
        token_U, place_M = torch.unique(ids.flatten(), return_inverse=True)
        gradient_MH = gradient.flatten(0, -2).float()
        # adds up in the same order whatever the number of threads, on a GPU too
        sums_UH: Tensor = torch.ops.aten.embedding_dense_backward(gradient_MH, place_M, len(token_U), -1, False)
        if padding is not None:
            sums_UH[token_U == padding] = 0.0
        total_VH = _get_gradient(parameter)
        total_VH.index_add_(0, token_U, sums_UH.to(total_VH.dtype))
        return None, None, None


class _Sums(NamedTuple):
    """Running sums over the vocabulary for logits z after their transform, all [N]."""

    largest_N: Tensor
    total_N: Tensor
    """Sum of exp(z - largest)."""
    weighted_N: Tensor
    """Sum of z * exp(z - largest)."""


def _add_tile_in_place(logits_NT: Tensor, room_NT: Tensor, sums: _Sums, transform: LogitTransform) -> _Sums:
    """Add the logits of a tile; they and the room are overwritten."""
    z_NT = transform.apply(logits_NT)
    largest_N = torch.maximum(sums.largest_N, z_NT.amax(1))
    torch.sub(z_NT, largest_N[:, None], out=room_NT).exp_()
    decay_N = (sums.largest_N - largest_N).exp_()
    total_N = sums.total_N * decay_N + room_NT.sum(1)
    return _Sums(largest_N, total_N, sums.weighted_N * decay_N + room_NT.mul_(z_NT).sum(1))


def _add_tile(logits_NT: Tensor, _: Tensor, sums: _Sums, transform: LogitTransform) -> _Sums:
    """The same without overwriting anything, to be compiled."""
    z_NT = transform.apply(logits_NT.clone())
    largest_N = torch.maximum(sums.largest_N, z_NT.amax(1))
    e_NT = (z_NT - largest_N[:, None]).exp()
    decay_N = (sums.largest_N - largest_N).exp()
    total_N = sums.total_N * decay_N + e_NT.sum(1)
    return _Sums(largest_N, total_N, sums.weighted_N * decay_N + (e_NT * z_NT).sum(1))


def _differentiate_tile_in_place(
    logits_NT: Tensor,
    room_NT: Tensor,
    normaliser_N: Tensor,
    gradient_N: Tensor,
    place_N: Tensor,
    transform: LogitTransform,
    dtype: torch.dtype,
) -> Tensor:
    """gradient * d log p(target) / d logits, with d log p(target) / d z = onehot(target) - p, written into the room.

    `dtype` is the precision of the result.
    """
    z_NT = transform.apply(logits_NT)
    torch.sub(z_NT, normaliser_N[:, None], out=room_NT).exp_().mul_(-gradient_N[:, None])
    inside_N = (place_N >= 0) & (place_N < z_NT.shape[1])
    room_NT.scatter_add_(1, place_N.clamp(0, z_NT.shape[1] - 1)[:, None], (gradient_N * inside_N)[:, None])
    return transform.chain(room_NT, z_NT).to(dtype)


def _differentiate_tile(
    logits_NT: Tensor,
    room_NT: Tensor,
    normaliser_N: Tensor,
    gradient_N: Tensor,
    place_N: Tensor,
    transform: LogitTransform,
    dtype: torch.dtype,
) -> Tensor:
    """The same without overwriting anything, to be compiled."""
    z_NT = transform.apply(logits_NT.clone())
    columns_T = torch.arange(z_NT.shape[1], device=z_NT.device)
    p_NT = (z_NT - normaliser_N[:, None]).exp()
    grad_NT = gradient_N[:, None] * ((columns_T == place_N[:, None]).float() - p_NT)
    return transform.chain(grad_NT, z_NT).to(dtype)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled


class _Tiles:
    """Parts of the vocabulary, each with room for as many logits as are held at once."""

    def __init__(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> None:
        self._inputs = hidden_NH, weight_VH, bias_V
        count, vocabulary = len(hidden_NH), len(weight_VH)
        numbers = _TILE_NUMBERS.get(hidden_NH.device.type, _TILE_NUMBERS["cpu"])
        self._width = min(vocabulary, max(1024, numbers // max(1, count) // 256 * 256))
        shape = (2, count * self._width)
        self._logits, self._scratch = torch.empty(shape, dtype=torch.float32, device=hidden_NH.device)

    def slices(self) -> Iterator[slice]:
        """The parts in order."""
        vocabulary = len(self._inputs[1])
        for start in range(0, vocabulary, self._width):
            yield slice(start, min(start + self._width, vocabulary))

    def scratch(self, tile: slice) -> Tensor:
        """Room [N, T] for float32 numbers; overwritten by the next tile."""
        return self._take_view(self._scratch, tile)

    def logits(self, tile: slice) -> Tensor:
        """The float32 logits [N, T] of a tile; overwritten by the next tile."""
        hidden_NH, weight_VH, bias_V = self._inputs
        logits_NT, weight_HT = self._take_view(self._logits, tile), weight_VH[tile].T
        if hidden_NH.dtype == torch.float32:
            torch.mm(hidden_NH, weight_HT, out=logits_NT)
        elif hidden_NH.is_cuda:
            torch.mm(hidden_NH, weight_HT, out_dtype=torch.float32, out=logits_NT)
        else:
            logits_NT.copy_(torch.mm(hidden_NH, weight_HT))
        if bias_V is not None:
            logits_NT.add_(bias_V[tile])
        return logits_NT

    def _take_view(self, room: Tensor, tile: slice) -> Tensor:
        shape = len(self._inputs[0]), tile.stop - tile.start
        return room[: shape[0] * shape[1]].view(shape)


def _get_gradient(weight: Tensor) -> Tensor:
    """The gradient of a weight, zeros where it has none yet; float32 where torch lets gradients be."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight, dtype=getattr(weight, "grad_dtype", None) or weight.dtype)
    return weight.grad


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; on a GPU no product is rounded to bfloat16 before it is added to a float32 total."""
    if left.dtype == torch.float32 and total.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda and total.dtype == torch.float32:
        total += torch.mm(left, right, out_dtype=torch.float32)
    else:
        total += torch.mm(left, right)
