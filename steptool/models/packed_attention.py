"""Attention of sequences that are packed end to end in one row.

On a GPU in bfloat16 they go through torch's kernels for variable lengths; elsewhere transformers derives a
block-diagonal mask from position ids that start again at 0 with each sequence.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from steptool.models.logprobs import unwrap_model

VARIABLE_LENGTH = "steptool_variable_length"
"""Name of the attention under which transformers finds `attend`."""
_ARGUMENTS = inspect.signature(varlen_attn).parameters
_HAS_SCALE, _HAS_WINDOW, _HAS_GROUPS = (name in _ARGUMENTS for name in ("scale", "window_size", "enable_gqa"))
"""torch's kernel has changed its arguments from one version to the next."""
_PACKABLE = {"full_attention", "sliding_attention"}
_OTHER_SCORES = {"s_aux", "sinks", "softcap", "position_bias", "indices", "block_indices"}
"""Arguments of attention that change its scores in a way that the kernels here do not know."""


def enable_packing(policy: nn.Module, computed: torch.dtype | None = None) -> bool:
    """Prepare a model for packed sequences; False where it is better, or necessary, to pad them.

    `computed` is the precision in which it computes, if it is not that of its weights.

    A CPU computes the whole block-diagonal mask, which costs more than padding. Models with a recurrent state, with
    attention of their own, with learned positions, sinks or a soft cap on scores or latent keys are padded.
    """
    lm = unwrap_model(policy)
    if lm.device.type != "cuda" or not can_pack(lm):
        return False
    if (computed or lm.dtype) == torch.bfloat16:
        lm.set_attn_implementation(VARIABLE_LENGTH)
    return True


def can_pack(lm: PreTrainedModel) -> bool:
    """Whether position ids and a block-diagonal mask are all that keeps packed sequences of this model apart."""
    config: Any = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or _PACKABLE)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    special = capped or hasattr(config, "kv_lora_rank") or any("sinks" in name for name, _ in lm.named_parameters())
    if special or not getattr(config, "rope_parameters", None):  # OPT and its like make masks without position ids
        return False
    return bool(lm._supports_attention_backend) and not lm._is_stateful and kinds <= _PACKABLE


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one row of packed sequences: query [1, heads, L, D] to [1, L, heads, D].

    `cu_seq_lens_q` [B + 1] holds where each sequence starts and ends; without it the row is one sequence. Raises
    ValueError for arguments that change the scores in another way.
    """
    if unknown := sorted(name for name in _OTHER_SCORES & others.keys() if others[name] is not None):
        raise ValueError(f"packed sequences: attention with {', '.join(unknown)} is not computed; pad this model")
    if query.shape[0] != 1:
        raise ValueError(f"packed sequences lie in one row, got {query.shape[0]} rows")
    length = query.shape[2]
    is_single = cu_seq_lens_q is None or max_length_q is None or max_length_q == length
    if is_single and (sliding_window is None or sliding_window >= length):
        # one sequence: torch's attention without a mask is about twice as fast as that for variable lengths
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2), None
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q, max_length_q = torch.tensor([0, length], dtype=torch.int32, device=query.device), length
    out_LHD = _variable_length(query[0], key[0], value[0], cu_seq_lens_q, max_length_q, scaling, sliding_window)
    return out_LHD[None], None


def _variable_length(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    options: dict[str, Any] = {}
    if _HAS_SCALE:
        options["scale"] = scale
    elif scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    if _HAS_WINDOW:
        options["window_size"] = (window - 1 if window else -1, 0)
    else:
        options["is_causal"] = True
    if query.shape[0] != key.shape[0]:
        if _HAS_GROUPS:
            options["enable_gqa"] = True
        else:
            groups = query.shape[0] // key.shape[0]
            key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    return cast(Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest, **options))


AttentionInterface.register(VARIABLE_LENGTH, attend)
