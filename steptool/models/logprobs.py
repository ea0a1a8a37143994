"""Log-probabilities of chosen tokens from hidden states. The one place that knows TRL's kernels.

Two ways give the same numbers. With a small vocabulary the logits of the action tokens are simply computed: on a CPU
this is about twice as fast as the tiled kernel, which computes them a second time in the backward pass. With a large
one the tiled kernel never holds the [N, V] logits and their gradient at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

SMALL_VOCABULARY = 16384
"""Up to this many tokens the logits are held in memory (N = 8000 action tokens: 0.5 GB in float32)."""
_TILE = 32768


def token_log_probs(
    lm: PreTrainedModel, hidden_NH: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, both [N] in nats, float32.

    `hidden_NH` are the backbone's last hidden states at the positions just before the targets. Gradients flow through
    the log-probabilities only; the entropy is for reading. Both are those of softmax(logits / temperature).
    """
    head: Any = lm.get_output_embeddings()
    scale, softcap = _logit_transform(lm)
    if head.weight.shape[0] <= SMALL_VOCABULARY:
        return _plain(functional.linear(hidden_NH, head.weight, head.bias), targets_N, scale, softcap, temperature)
    log_probs_N, entropy_N, *_ = ChunkedLogProbFunction.apply(
        hidden_NH, head.weight, head.bias, targets_N, temperature, _TILE, softcap, scale, ("entropy",)
    )
    return log_probs_N, entropy_N.detach()


def _plain(
    logits_NV: Tensor, targets_N: Tensor, scale: float, softcap: float | None, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_NV = logits_NV.float() * scale if scale != 1.0 else logits_NV.float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    log_softmax_NV = functional.log_softmax(logits_NV / temperature, dim=-1)
    with torch.no_grad():
        entropy_N = -torch.linalg.vecdot(log_softmax_NV.exp(), log_softmax_NV)
    return log_softmax_NV.gather(-1, targets_N[:, None]).squeeze(-1), entropy_N


def _logit_transform(lm: PreTrainedModel) -> tuple[float, float | None]:
    """Factor and soft cap that some architectures put between the output layer and the softmax."""
    config: Any = lm.config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name)), getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        scale = float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)
        return scale, getattr(config, "final_logit_softcapping", None)
    return 1.0, getattr(config, "final_logit_softcapping", None)


def causal_lm(policy: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a policy that may be wrapped by peft (adapters stay where they are)."""
    lm: PreTrainedModel = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # type: ignore[operator]
    return lm
