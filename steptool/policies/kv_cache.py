"""The KV cache of many episodes in one batch: what a layer sees, whose a row is, and which tokens to compute."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steptool.models.logprobs import unwrap_model
from steptool.rollout.episode import Episode

_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Rotary position embeddings that change for all tokens when a text grows beyond its original length."""


class AttentionMasks:
    """The additive masks of a model's layers.

    A layer sees every earlier token (full attention), the last `sliding_window` of them, or those of its own chunk of
    `attention_chunk_size`. The library cannot tell rows of different lengths apart, so the masks are made here.

    Raises ValueError, with the remedy, for a model whose layers keep anything but keys and values, or that takes no
    positions or masks.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._device, self._dtype = model.device, model.dtype
        config: Any = unwrap_model(model).config.get_text_config()
        self._kinds = list_layer_kinds(config)
        self._window = int(getattr(config, "sliding_window", None) or 0)
        self._chunk = int(getattr(config, "attention_chunk_size", None) or 0)
        _check_runs(model, self._kinds)

    def build(self, position_RM: Tensor, length: int) -> Tensor | dict[str, Tensor]:
        """Masks [R, 1, M, length] of tokens at these positions, over the slots 0 to length - 1; 0 where one is seen.

        One mask for a model whose layers are all alike, else one for each kind of layer.
        """
        masks = {kind: self._make_additive(self._find_visible(kind, position_RM, length)) for kind in self._kinds}
        return next(iter(masks.values())) if len(masks) == 1 else masks

    def _find_visible(self, kind: str, position_RM: Tensor, length: int) -> Tensor:
        slot = torch.arange(length, device=self._device)
        position_RM1 = position_RM[:, :, None]
        visible_RMS = slot <= position_RM1
        if kind == _SLIDING:
            visible_RMS = visible_RMS & (slot > position_RM1 - self._window)
        elif kind == _CHUNKED:
            visible_RMS = visible_RMS & (slot // self._chunk == position_RM1 // self._chunk)
        return visible_RMS

    def _make_additive(self, visible_RMS: Tensor) -> Tensor:
        mask = torch.zeros(visible_RMS.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(~visible_RMS, torch.finfo(self._dtype).min)
        return mask[:, None]


@contextmanager
def share_keys() -> Iterator[None]:
    """Within it, transformers' "sdpa" attention copies no keys and values in a decoding step.

    Where several query heads share a key/value head, transformers 5.19 repeats the whole cache for them in every layer,
    which takes longer than the rest of the step. Version 5.23 computes single tokens as `_attend` does.
    """
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention_forward


def _attend(
    module: nn.Module,
    query_RHMD: Tensor,
    key_RKSD: Tensor,
    value_RKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention [R, M, H, D] of M new tokens to S slots, with H query heads and K key/value heads.

    With one new token, the query heads of a key/value head go in as new tokens of it: they see the same slots.
    """
    rows, heads, new, size = query_RHMD.shape
    same_slots = attention_mask is not None and attention_mask.shape[1] == 1 and options.get("position_bias") is None
    if new > 1 or not same_slots:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_RHMD, key_RKSD, value_RKSD, attention_mask, scaling=scaling, **options
        )
        return attended
    output_RKGD = scaled_dot_product_attention(
        query_RHMD.reshape(rows, key_RKSD.shape[1], -1, size),
        key_RKSD,
        value_RKSD,
        attn_mask=attention_mask,
        dropout_p=options.get("dropout", 0.0),
        scale=scaling,
    )
    return output_RKGD.reshape(rows, 1, heads, -1), None


def list_layer_kinds(config: Any) -> list[str]:
    """The kinds of a model's layers, each once, by the names that its configuration gives them."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return sorted(set(kinds))
    return [_SLIDING if getattr(config, "sliding_window", None) else _FULL]


def make_forward_options(model: PreTrainedModel) -> dict[str, Any]:
    """Arguments with which a forward pass computes the logits of the last token only."""
    accepted = inspect.signature(unwrap_model(model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


def find_cache_argument(model: PreTrainedModel) -> str | None:
    """The name under which a forward pass takes its keys and values, None if it takes none; models of newer versions of
    transformers have the second.
    """
    accepted = inspect.signature(unwrap_model(model).forward).parameters
    return next((name for name in ("past_key_values", "cache") if name in accepted), None)


def check_context(model: PreTrainedModel, max_context: int) -> None:
    """Raise ValueError if the model cannot read `max_context` tokens, or if their positions change as a text grows."""
    name, config = type(unwrap_model(model)).__name__, unwrap_model(model).config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_context > positions:
        raise ValueError(
            f"{name} has positions for {positions} tokens, policy.max_context is {max_context}; lower max_context"
        )
    limit = _find_rope_limit(config)
    if limit is not None and max_context > limit:
        raise ValueError(
            f"{name} changes all its positions once a text has more than {limit} tokens, which a KV cache cannot "
            f"follow; policy.max_context is {max_context}: lower it to {limit}"
        )


def _find_rope_limit(config: Any) -> int | None:
    """The length from which on rotary positions depend on how long the text is; None if they never do."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in nested or [parameters]:
        if rope.get("rope_type") in _LENGTH_DEPENDENT:
            limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            return int(getattr(config, "original_max_position_embeddings", None) or limit)
    return None


def _check_runs(model: PreTrainedModel, kinds: list[str]) -> None:
    """Raise ValueError for a model that the sampler cannot play; `kinds` are those of its layers."""
    inner = unwrap_model(model)
    name = type(inner).__name__
    others = sorted(set(kinds) - {_FULL, _SLIDING, _CHUNKED})
    if others or getattr(inner, "_is_stateful", False) or "local" in getattr(inner.config, "attention_layers", ()):
        raise ValueError(
            f"{name} cannot be played by our engine: its layers ({', '.join(others or kinds)}) keep a state that "
            "cannot be taken back to an earlier token, or make masks of their own; choose a model of plain or sliding "
            "attention (Qwen3, Llama, Mistral, Gemma, Phi-3, gpt-oss, OLMo and others), set rollout.engine to vllm, or "
            "evaluate this one behind an endpoint"
        )
    if "position_ids" not in inspect.signature(inner.forward).parameters or find_cache_argument(inner) is None:
        raise ValueError(f"{name} takes no position_ids or no cache of keys and values; use a decoder that does")
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"attention implementation '{attention}' takes no masks; load the model with 'sdpa' or 'eager'"
        )


_SHARED = 128
"""Number of equal first tokens from which one sequence takes over what was computed for another. Shorter prompts must
be equal as a whole, as in several attempts at one task."""


class Copy(NamedTuple):
    """Keys and values to take over: the first `length` tokens of one row into another."""

    source: int
    row: int
    length: int


class Fill(NamedTuple):
    """Tokens to compute in a row; those before `start` are there already."""

    row: int
    start: int
    ids: Sequence[int]


@dataclass
class Stage:
    """Copies, and then rows to fill side by side."""

    copies: list[Copy] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)


class Rows:
    """The rows of one run. A row keeps its tokens when its episode ends, because the next one may begin with them."""

    def __init__(self, count: int) -> None:
        self._episodes: list[Episode | None] = [None] * count
        self._ids: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * count
        """The tokens whose keys and values each row holds."""

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def in_use(self) -> list[int]:
        """The rows that belong to an episode."""
        return [row for row, episode in enumerate(self._episodes) if episode]

    def find_row(self, episode: Episode) -> int:
        """The row of an episode. Raises ValueError if it has none."""
        return self._episodes.index(episode)

    def get_episode(self, row: int) -> Episode:
        """The episode of a row in use."""
        episode = self._episodes[row]
        assert episode is not None
        return episode

    def take(self, episode: Episode) -> int:
        """Give the first free row to an episode."""
        row = self._episodes.index(None)
        self._episodes[row] = episode
        return row

    def release(self, episode: Episode) -> None:
        """Free the episode's row."""
        self._episodes[self.find_row(episode)] = None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; row rows[i] becomes row i."""
        self._episodes, self._ids = [self._episodes[row] for row in rows], [self._ids[row] for row in rows]

    def append(self, row: int, ids: Sequence[int]) -> None:
        """Note sampled tokens whose keys and values a row holds as well."""
        self._ids[row] = np.concatenate([self._ids[row], np.asarray(ids, np.int64)])

    def plan(self, prompts: Sequence[tuple[Episode, Sequence[int], bool]]) -> list[Stage]:
        """How to put the prompts of episodes into their rows: (episode, tokens, whether it is the first prompt).

        An episode that begins takes over what another row holds, or will hold after the first stage, of the tokens that
        both begin with. So the prompts of many episodes with the same tools are computed once.
        """
        first, second = Stage(), Stage()
        beginning = {self.find_row(episode) for episode, _, begins in prompts if begins}
        sources = {_make_key(self._ids[row]): row for row in self.in_use if row not in beginning}
        for episode, prompt, begins in prompts:
            row, ids = self.find_row(episode), np.asarray(prompt, np.int64)
            key, stage, start = _make_key(ids), first, 0
            if not begins or (key and key == _make_key(self._ids[row])):
                start = _count_common(self._ids[row], ids)
            elif key and key in sources:
                source = sources[key]
                stage = second if any(fill.row == source for fill in first.fills) else first
                start = _count_common(self._ids[source], ids)
                stage.copies.append(Copy(source, row, start))
            start = min(start, len(ids) - 1)
            self._ids[row] = ids
            stage.fills.append(Fill(row, start, prompt[start:]))
            if begins:
                sources.setdefault(key, row)
        return [stage for stage in (first, second) if stage.fills]


def _make_key(ids: npt.NDArray[np.int64]) -> bytes:
    """A key that is equal for sequences that share a prefix; empty for an empty row."""
    return ids[:_SHARED].tobytes()


def _count_common(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    """Number of tokens with which both begin."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
