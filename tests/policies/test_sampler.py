from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from steptool.policies import sampler as sampling
from steptool.policies.sampler import BatchSampler, Feed


def test_tokens_are_drawn_with_the_probabilities_of_the_model(random_model: PreTrainedModel) -> None:
    rows, temperature = 4000, 1.5
    random_model.eval()
    sampler = BatchSampler(random_model, rows, set(), max_new_tokens=1, temperature=temperature)
    uniforms = np.random.default_rng(0).random((rows, 1), dtype=np.float32)
    sampler.feed([Feed(row, 0, [5, 6, 7], uniforms[row]) for row in range(rows)])
    turns = sampler.take()
    draws = np.array([turn.ids[0] for turn in turns])
    with torch.inference_mode():
        logits = random_model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    expected = (logits / temperature).softmax(-1).numpy()
    observed = np.bincount(draws, minlength=len(expected)) / rows
    deviation = np.sqrt(expected * (1 - expected) / rows)
    assert np.all(np.abs(observed - expected) < 5 * deviation + 1e-3)
    np.testing.assert_allclose([turn.logprobs[0] for turn in turns], np.log(expected[draws]), atol=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.999999, 1.0])
def test_no_token_of_probability_zero_is_drawn(uniform: float) -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    token = int(sampling._invert(probabilities, torch.tensor([uniform])))
    assert token == (1 if uniform < 0.25 else 3)


@pytest.mark.parametrize("limits", [sampling.CPU_LIMITS, sampling.GPU_LIMITS], ids=["cpu", "gpu"])
@given(sizes=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 6000)), max_size=12))
def test_groups_hold_every_feed_within_the_limits(limits: sampling.PrefillLimits, sizes: list[tuple[int, int]]) -> None:
    feeds = [Feed(i, start, [0] * n, np.zeros(1, np.float32)) for i, (start, n) in enumerate(sizes)]
    groups = list(sampling._group_feeds(feeds, limits))
    assert sorted(f.row for g in groups for f in g) == list(range(len(feeds)))
    for group in groups:
        width, slots = max(len(f.ids) for f in group), max(f.start + len(f.ids) for f in group)
        assert len(group) == 1 or len(group) * width * slots <= limits.mask_cells
        assert sum(width - len(f.ids) for f in group) <= limits.padding


def test_rows_go_on_after_others_are_dropped(random_model: PreTrainedModel) -> None:
    random_model.eval()
    uniforms = np.random.default_rng(1).random((3, 80), dtype=np.float32)
    prompts = [[5] * 10, [6] * 100, [7, 8, 9] * 20]

    def turn(rows: list[int], drop: Callable[[BatchSampler], None]) -> list[int]:
        sampler = BatchSampler(random_model, len(rows), set(), max_new_tokens=80)
        sampler.feed([Feed(i, 0, prompts[r], uniforms[r]) for i, r in enumerate(rows)])
        for _ in range(40):
            sampler.step()
        drop(sampler)
        while not sampler.ended_count:
            sampler.step()
        return sampler.take()[-1].ids

    assert turn([0, 1, 2], lambda s: s.keep([2])) == turn([2], lambda s: None)
    assert turn([1, 2, 0], lambda s: s.keep([2, 0])) == turn([1], lambda s: None)


def test_a_row_is_given_to_another_sequence(random_model: PreTrainedModel) -> None:
    random_model.eval()
    uniforms = np.random.default_rng(2).random((2, 6), dtype=np.float32)
    used = BatchSampler(random_model, 1, set(), max_new_tokens=6)
    fresh = BatchSampler(random_model, 1, set(), max_new_tokens=6)
    feeds = [Feed(0, 0, list(range(20, 60)), uniforms[0]), Feed(0, 0, [9, 8], uniforms[1])]
    for sampler, plan in ((used, feeds), (fresh, feeds[1:])):
        for feed in plan:
            sampler.feed([feed])
            while not sampler.ended_count:
                sampler.step()
            (last,) = sampler.take()
        if sampler is used:
            expected = last
    assert last.ids == expected.ids
    np.testing.assert_allclose(last.logprobs, expected.logprobs, atol=1e-5)


def test_models_that_cannot_be_run_so_are_refused(random_model: PreTrainedModel) -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="takes no position_ids"):
        BatchSampler(bloom, 1, set(), max_new_tokens=1)
    random_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no masks"):
        BatchSampler(random_model, 1, set(), max_new_tokens=1)


def test_an_idle_row_may_be_longer_than_those_that_go_on(random_model: PreTrainedModel) -> None:
    random_model.eval()
    uniforms = np.random.default_rng(3).random((2, 5), dtype=np.float32)
    short = Feed(1, 0, [7, 8, 9], uniforms[1])
    turns = []
    for feeds in ([Feed(0, 0, [5] * 60, uniforms[0]), short], [short]):  # 60 and 4 fill the first chunk of the cache
        sampler = BatchSampler(random_model, 2, set(), max_new_tokens=5)
        for feed in feeds:
            sampler.feed([feed])
            while not sampler.ended_count:
                sampler.step()
            (turn,) = sampler.take()
        turns.append(turn)
    assert turns[0].ids == turns[1].ids
