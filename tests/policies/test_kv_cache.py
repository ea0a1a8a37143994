"""Log-probabilities of turns that are sampled with a cache, against a model's own, for every kind of attention."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steptool.policies.kv_cache import AttentionMasks, Copy, Fill, Rows, check_context, share_keys
from steptool.policies.sampler import BatchSampler, Feed
from steptool.records import Query
from steptool.rollout.episode import Episode

SIZES = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4} | {
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
WINDOW = {"sliding_window": 16}
MIXED = WINDOW | {"layer_types": ["full_attention", "sliding_attention"] * 2}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
PLAYED = {
    "llama": {}, "qwen3": {}, "gemma": {}, "glm4": {}, "granite": {},
    "qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
    "mistral": WINDOW, "ministral": MIXED, "mixtral": WINDOW | EXPERTS, "phi3": WINDOW, "starcoder2": WINDOW,
    "gemma2": WINDOW | {"query_pre_attn_scalar": 8}, "gemma3_text": MIXED | {"query_pre_attn_scalar": 8},
    "gpt_oss": WINDOW | EXPERTS, "olmo3": MIXED, "cohere2": MIXED, "exaone4": WINDOW | {"sliding_window_pattern": 2},
    "smollm3": MIXED | {"use_sliding_window": True, "no_rope_layers": [1, 0, 1, 0]},
    "llama4_text": {"attention_chunk_size": 16, "intermediate_size_mlp": 48, "no_rope_layers": [1, 1, 1, 0]} | EXPERTS,
}  # fmt: skip
REFUSED = {
    "qwen3_next": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
    "qwen3_5_text": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1},
    "mamba": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 4},
}


def build(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A model of random weights that make peaked distributions."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **settings})).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def sample_two_turns(model: PreTrainedModel) -> list[tuple[list[int], list[int], list[float]]]:
    """Tokens, places and log-probabilities of what is sampled in rows of 5, 40 and 70 tokens, side by side."""
    random = np.random.default_rng(0)
    sampler = BatchSampler(model, 3, {1}, max_new_tokens=12)
    rows: list[tuple[list[int], list[int], list[float]]] = [
        (random.integers(2, 120, size).tolist(), [], []) for size in (5, 40, 70)
    ]
    cached = [0, 0, 0]
    for _ in range(2):
        uniforms = random.random((3, 12), dtype=np.float32)
        sampler.feed([Feed(n, cached[n], ids[cached[n] :], uniforms[n]) for n, (ids, _, _) in enumerate(rows)])
        while sampler.ended_count < 3:
            sampler.step()
        for turn in sampler.take():
            ids, places, logprobs = rows[turn.row]
            places += range(len(ids), len(ids) + len(turn.ids))
            logprobs += turn.logprobs.tolist()
            ids += turn.ids
            cached[turn.row] = len(ids) - 1
            ids += random.integers(2, 120, 7).tolist()
    return rows


@pytest.mark.parametrize("kind", PLAYED)
@torch.inference_mode()
def test_sampled_logprobs_are_the_models_own(kind: str) -> None:
    model = build(kind, PLAYED[kind])
    for ids, places, logprobs in sample_two_turns(model):
        own = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected = own[np.asarray(places) - 1, np.asarray(ids)[places]]
        np.testing.assert_allclose(logprobs, expected.numpy(), atol=1e-4)


class LaterLlama(LlamaForCausalLM):
    """Has the name that newer versions of transformers give to the keys and values."""

    def forward(self, input_ids: Any, position_ids: Any, attention_mask: Any, cache: Any, use_cache: bool) -> Any:
        return super().forward(input_ids, attention_mask, position_ids, cache, use_cache=use_cache)


@torch.inference_mode()
def test_keys_and_values_go_under_the_name_that_the_model_gives_them() -> None:
    model = build("llama", {})
    later = LaterLlama(model.config).eval()
    later.load_state_dict(model.state_dict())
    assert [ids for ids, _, _ in sample_two_turns(later)] == [ids for ids, _, _ in sample_two_turns(model)]


class AttentionShapes(TorchFunctionMode):
    """Notes the new tokens and the key/value heads of every attention that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.add((args[0].shape[2], args[1].shape[1]))
        return func(*args, **(kwargs or {}))


def test_a_decoding_step_copies_no_keys_for_query_heads() -> None:
    sampler = BatchSampler(build("llama", {}), 2, set(), max_new_tokens=3)
    sampler.feed([Feed(row, 0, [5, 6, 7], np.zeros(3, np.float32)) for row in range(2)])
    with AttentionShapes() as attention:
        sampler.step()
    assert attention.seen == {(2, 2)}, "two query heads as new tokens of each of the two key/value heads"
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("mask_heads", [1, 6])
def test_shared_keys_give_the_attention_of_repeated_ones(new: int, mask_heads: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, new, 8), torch.randn(3, 2, 11, 8), torch.randn(3, 2, 11, 8)
    mask = torch.zeros(3, mask_heads, new, 11).masked_fill_(torch.rand(3, mask_heads, new, 11) < 0.5, -1e9)
    module = SimpleNamespace(num_key_value_groups=3)
    with share_keys():
        attended, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=0.3)
    scores = torch.einsum("rhmd,rhsd->rhms", query, key.repeat_interleave(3, 1)) * 0.3 + mask
    expected = torch.einsum("rhms,rhsd->rmhd", scores.softmax(-1), value.repeat_interleave(3, 1))
    torch.testing.assert_close(attended, expected)


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_keep_another_state_are_refused_by_name(kind: str) -> None:
    model = build(kind, REFUSED[kind])
    with pytest.raises(ValueError, match=rf"{type(model).__name__} cannot be played by our engine.*choose a model"):
        BatchSampler(model, 1, set(), max_new_tokens=1)


def test_what_each_kind_of_layer_sees() -> None:
    model = build("cohere2", {**MIXED, "sliding_window": 2})
    masks = AttentionMasks(model).build(torch.tensor([[3], [1]]), 5)
    assert isinstance(masks, dict)
    observed = {kind: (mask[:, 0, 0] == 0).int().tolist() for kind, mask in masks.items()}
    assert observed == {
        "full_attention": [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]],
        "sliding_attention": [[0, 0, 1, 1, 0], [1, 1, 0, 0, 0]],
    }


def test_a_context_longer_than_the_positions_is_refused() -> None:
    check_context(build("llama", {}), 512)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has positions for 512 tokens, policy.max_context is 513"):
        check_context(build("llama", {}), 513)


def test_positions_that_depend_on_the_length_of_the_text_are_refused_beyond_it() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = build("phi3", {"rope_parameters": rope, "original_max_position_embeddings": 128})
    check_context(model, 128)
    with pytest.raises(ValueError, match=r"once a text has more than 128 tokens.*lower it to 128"):
        check_context(model, 129)


MakeQuery = Callable[..., Query]
TOOLS = list(range(1000, 1200))


@pytest.fixture
def episodes(make_query: MakeQuery) -> list[Episode]:
    return [Episode(make_query(f"q{n}", "go"), max_steps=8) for n in range(4)]


def plan(rows: Rows, *prompts: tuple[Episode, list[int], bool]) -> list[tuple[list[Copy], list[Fill]]]:
    return [(stage.copies, stage.fills) for stage in rows.plan(prompts)]


def test_prompts_that_begin_alike_are_copied_from_the_first_of_them(episodes: list[Episode]) -> None:
    rows = Rows(3)
    for episode in episodes[:3]:
        rows.take(episode)
    prompts = [(episodes[0], [*TOOLS, 0], True), (episodes[1], [7] * 9, True), (episodes[2], [*TOOLS, 2], True)]
    assert plan(rows, *prompts) == [
        ([], [Fill(0, 0, [*TOOLS, 0]), Fill(1, 0, [7] * 9)]),
        ([Copy(0, 2, 200)], [Fill(2, 200, [2])]),
    ]


def test_an_episode_goes_on_where_its_row_stands_and_a_later_one_takes_over_what_is_there(
    episodes: list[Episode],
) -> None:
    rows = Rows(2)
    rows.take(episodes[0])
    plan(rows, (episodes[0], [*TOOLS, 1, 2], True))
    rows.append(0, [3, 4])
    rows.take(episodes[1])
    stages = plan(rows, (episodes[0], [*TOOLS, 1, 2, 3, 4, 5, 6], False), (episodes[1], [*TOOLS, 9], True))
    assert stages == [([], [Fill(0, 204, [5, 6])]), ([Copy(0, 1, 200)], [Fill(1, 200, [9])])]
    rows.release(episodes[0])
    assert rows.take(episodes[2]) == 0 and rows.in_use == [0, 1]
    assert plan(rows, (episodes[2], [*TOOLS, 1, 8], True)) == [([], [Fill(0, 201, [8])])]


def test_equal_prompts_compute_their_last_token_each(episodes: list[Episode]) -> None:
    rows = Rows(2)
    for episode in episodes[:2]:
        rows.take(episode)
    stages = plan(rows, (episodes[0], TOOLS, True), (episodes[1], TOOLS, True))
    assert stages == [([], [Fill(0, 0, TOOLS)]), ([Copy(0, 1, 200)], [Fill(1, 199, TOOLS[199:])])]


def test_short_prompts_are_shared_if_they_are_equal(episodes: list[Episode]) -> None:
    rows = Rows(3)
    for episode in episodes[:3]:
        rows.take(episode)
    prompts = [(episodes[0], [5, 6, 7], True), (episodes[1], [5, 6], True), (episodes[2], [5, 6, 7], True)]
    assert plan(rows, *prompts) == [
        ([], [Fill(0, 0, [5, 6, 7]), Fill(1, 0, [5, 6])]),
        ([Copy(0, 2, 3)], [Fill(2, 2, [7])]),
    ]


def test_rows_that_go_on_are_numbered_anew(episodes: list[Episode]) -> None:
    rows = Rows(3)
    for episode in episodes[:3]:
        rows.take(episode)
    plan(rows, *((episode, [n, n + 1, n + 2], True) for n, episode in enumerate(episodes[:3])))
    rows.keep([2, 1])
    assert (rows.find_row(episodes[2]), rows.get_episode(1), len(rows)) == (0, episodes[1], 2)
    assert plan(rows, (episodes[2], [2, 3, 4, 5], False)) == [([], [Fill(0, 3, [5])])]
