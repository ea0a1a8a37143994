"""What the tests of recorded steps play, on a GPU and with graphs in software."""

import numpy as np

from steptool.policies.sampler import BatchSampler, Feed, SampledTurn

Prompts = tuple[list[int], list[int], list[int]]


def play_two_turns(sampler: BatchSampler, prompts: Prompts, tokens: int, steps: int) -> list[SampledTurn]:
    """Two turns of each of two rows, after one of three rows was dropped some steps into the first turn."""
    uniforms = np.random.default_rng(1).random((2, 3, tokens), dtype=np.float32)
    sampler.feed([Feed(row, 0, prompt, uniforms[0, row]) for row, prompt in enumerate(prompts)])
    for _ in range(steps):
        sampler.step()
    sampler.keep([2, 0])
    turns = take_all(sampler)
    ends = {turn.row: len(prompts[(2, 0)[turn.row]]) + len(turn.ids) - 1 for turn in turns}
    sampler.feed([Feed(row, end, [turns[row].ids[-1], 3, 4], uniforms[1, row]) for row, end in ends.items()])
    return turns + take_all(sampler)


def take_all(sampler: BatchSampler) -> list[SampledTurn]:
    """Sample until all turns have ended."""
    while sampler.ended_count < sampler.open_count:
        sampler.step()
    return sampler.take()


def assert_same(actual: list[SampledTurn], expected: list[SampledTurn]) -> None:
    """The same tokens, and the same log-probabilities within rounding."""
    assert [turn.ids for turn in actual] == [turn.ids for turn in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
