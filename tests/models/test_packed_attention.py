"""Which models are packed end to end, and the attention of packed rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from steptool.models.actor import Actor, collate
from steptool.models.packed_attention import VARIABLE_LENGTH, can_pack

SIZES = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 8}


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2))


def make_rows(number: int) -> list[SimpleNamespace]:
    rng = np.random.default_rng(1)
    return [SimpleNamespace(input_ids=rng.integers(1, 97, 12), spans=[(3, 6), (9, 12)]) for _ in range(number)]


def test_one_sequence_of_a_packed_row_needs_no_kernel_for_variable_lengths() -> None:
    model, row = make_llama(), make_rows(1)
    expected = Actor(model)(collate(row)).log_probs_N
    model.set_attn_implementation(VARIABLE_LENGTH)
    torch.testing.assert_close(Actor(model)(collate(row, packed=True)).log_probs_N, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="packed sequences lie in one row, got 3 rows"):
        Actor(model)(collate(make_rows(3)))


def test_soft_caps_on_scores_are_not_packed() -> None:
    assert can_pack(make_llama())
    assert not can_pack(Gemma2ForCausalLM(Gemma2Config(**SIZES, num_attention_heads=2, head_dim=8)))


def test_sinks_and_latent_keys_are_not_packed() -> None:
    """The kernel for variable lengths would leave the sinks of gpt-oss out without a word."""
    torch.manual_seed(0)
    oss = GptOssForCausalLM(GptOssConfig(**SIZES, num_attention_heads=2, head_dim=8, num_local_experts=2))
    deepseek = DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, first_k_dense_replace=1, num_attention_heads=2))
    assert not can_pack(oss) and not can_pack(deepseek)
    oss.set_attn_implementation(VARIABLE_LENGTH)
    with pytest.raises(ValueError, match="attention with s_aux is not computed"):
        Actor(oss)(collate(make_rows(1), packed=True))
