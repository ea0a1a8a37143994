"""What only a GPU can show of sampling: recorded decoding steps."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steptool.policies.sampler import BatchSampler, SampledTurn
from tests.support.recorded_steps import assert_same, play_two_turns

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
VOCABULARY, PROMPTS = 512, ([5] * 10, [6] * 100, [7, 8, 9] * 20)


def make_model(rope: str = "default") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, intermediate_size=256, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=1024,
        rope_parameters={"rope_type": rope, "rope_theta": 1e4} | ({} if rope == "default" else {"factor": 2.0}),
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to("cuda")


def sample(model: LlamaForCausalLM, *, recorded: bool) -> tuple[list[SampledTurn], int]:
    """Two turns of each of two rows, 160 tokens each, after one of three rows was dropped; and the number of graphs."""
    sampler = BatchSampler(model, 3, set(), max_new_tokens=160, temperature=0.9, cuda_graphs=recorded)
    turns = play_two_turns(sampler, PROMPTS, 160, steps=20)
    graphs = sampler._recordings._graphs.values() if sampler._recordings else ()
    return turns, sum(graph is not None for graph in graphs)


def test_recorded_steps_sample_what_plain_ones_sample() -> None:
    model = make_model()
    turns, graphs = sample(model, recorded=True)
    assert graphs >= 2
    assert_same(turns, sample(model, recorded=False)[0])


def test_weights_may_change_between_runs() -> None:
    model = make_model()
    before, _ = sample(model, recorded=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    after, _ = sample(model, recorded=True)
    assert_same(after, sample(model, recorded=False)[0])
    assert [turn.ids for turn in before] != [turn.ids for turn in after]


def test_a_model_that_waits_for_the_gpu_is_played_without_graphs() -> None:
    """Dynamic rotary positions compare the longest text with a limit on the CPU."""
    model = make_model("dynamic")
    turns, graphs = sample(model, recorded=True)
    assert graphs == 0
    assert_same(turns, sample(model, recorded=False)[0])
