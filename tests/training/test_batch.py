from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.models import batch


def row(ids: list[int], *spans: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(input_ids=np.array(ids, np.int32), spans=list(spans))


def test_labels_are_the_tokens_inside_the_spans() -> None:
    tensors = batch.collate([row([7, 8, 9, 10], (1, 2), (3, 4)), row([5, 6], (1, 2))])
    assert tensors["input_ids"].tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]
    assert tensors["labels"].tolist() == [[-100, 8, -100, 10], [-100, 6, -100, -100]]


@pytest.mark.parametrize("spans", [[(0, 1)], [(1, 1)], [(2, 4), (1, 3)], [(1, 3), (2, 4)], [(1, 5)]])
def test_impossible_spans_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="a sequence of 4 tokens"):
        batch.labels_of(row([1, 2, 3, 4], *spans))


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 3))
def test_every_pass_sees_every_sequence_once(count: int, size: int, epochs: int) -> None:
    steps = batch.mini_batches(count, size, epochs, seed=3)
    per_epoch = batch.updates_per_epoch(count, size)
    assert len(steps) == epochs * per_epoch
    for e in range(epochs):
        seen = np.concatenate(steps[e * per_epoch : (e + 1) * per_epoch])
        assert sorted(seen) == list(range(count))
    assert max(map(len, steps)) <= size
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_micro_batches_share_out_a_mini_batch_by_length(lengths: list[int], size: int, processes: int) -> None:
    rows = np.arange(len(lengths))
    slots = -(-len(lengths) // (size * processes)) * processes
    groups = batch.micro_batches(rows, np.array(lengths), size, slots)
    assert len(groups) == slots
    assert sorted(np.concatenate(groups)) == list(rows)
    assert max(map(len, groups)) <= size
    by_length = [lengths[i] for group in groups for i in group]
    assert by_length == sorted(by_length)


def test_a_mini_batch_too_large_for_its_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="5 sequences do not fit into 2 micro batches of 2"):
        batch.micro_batches(np.arange(5), np.ones(5, np.int64), 2, 2)


def test_grouped_batches_waste_little_padding_and_skip_nobody() -> None:
    lengths = np.random.default_rng(0).integers(50, 500, 400)
    steps = batch.grouped_batches(lengths, 16, 25, seed=1)
    assert sorted(np.concatenate(steps)) == list(range(400))
    padded = sum(len(rows) * lengths[rows].max() for rows in steps)
    assert padded / lengths.sum() < 1.15
    again = batch.grouped_batches(lengths, 16, 30, seed=1)
    assert len(again) == 30
    assert all((a == b).all() for a, b in zip(steps, again[:25], strict=True))
