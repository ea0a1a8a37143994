"""Recorded decoding steps with CUDA graphs in software; tests/policies/test_gpu.py has the same on a GPU."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steptool.policies import sampler as sampling
from steptool.policies.sampler import BatchSampler, Feed, SampledTurn, StepRecordings
from tests.support import cuda_graphs
from tests.support.recorded_steps import assert_same, play_two_turns

TOKENS, PROMPTS = 24, ([5] * 4, [6] * 30, [7, 8, 9] * 6)


def make_model(rope: str = "default") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, intermediate_size=16, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, max_position_embeddings=256,
        rope_parameters={"rope_type": rope, "rope_theta": 1e4} | ({} if rope == "default" else {"factor": 2.0}),
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sample(model: LlamaForCausalLM, recordings: StepRecordings | None) -> list[SampledTurn]:
    """Two turns of each of two rows, after one of three rows was dropped."""
    sampler = BatchSampler(model, 3, set(), max_new_tokens=TOKENS, temperature=0.9)
    sampler._recordings = recordings
    return play_two_turns(sampler, PROMPTS, TOKENS, steps=6)


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_graphs.install(monkeypatch)
    monkeypatch.setattr(sampling, "_RECORDED_CHUNK", 16)


def test_recorded_steps_sample_what_plain_ones_sample() -> None:
    """Steps that have changed weights, and steps after all recordings were forgotten, too."""
    model, recordings = make_model(), StepRecordings()
    expected = sample(model, None)
    assert_same(sample(model, recordings), expected)
    assert sum(graph is not None for graph in recordings._graphs.values()) >= 2
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert_same(sample(model, StepRecordings()), sample(model, None))
    assert [turn.ids for turn in sample(model, None)] != [turn.ids for turn in expected]


def test_a_model_that_waits_for_the_gpu_is_played_without_graphs() -> None:
    model, recordings = make_model("dynamic"), StepRecordings()
    assert_same(sample(model, recordings), sample(model, None))
    assert all(graph is None for graph in recordings._graphs.values())


def test_layers_of_a_padded_prefill_do_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    sampler = BatchSampler(model, 3, set(), max_new_tokens=TOKENS)
    forward, uniforms = model.forward, np.zeros((3, TOKENS), np.float32)

    def refuse_waiting(*args: object, **kwargs: object) -> object:
        with cuda_graphs.Refusal():
            return forward(*args, **kwargs)

    monkeypatch.setattr(sampling, "make_forward_options", lambda model: {})
    monkeypatch.setattr(model, "forward", refuse_waiting)
    sampler.feed([Feed(row, 0, prompt, uniforms[row]) for row, prompt in enumerate(PROMPTS)])
    assert sampler.open_count == 3
