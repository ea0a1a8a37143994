import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steptool.training import processes


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 3))
def test_every_pass_sees_every_sequence_once(count: int, size: int, epochs: int) -> None:
    steps = processes.draw_mini_batches(count, size, epochs, seed=3)
    per_epoch = processes.count_updates(count, size)
    assert len(steps) == epochs * per_epoch
    for e in range(epochs):
        positions = np.concatenate(steps[e * per_epoch : (e + 1) * per_epoch])
        assert sorted(positions) == list(range(count))
    assert max(map(len, steps)) <= size
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 8), st.integers(1, 3))
def test_equal_steps_miss_no_pair_and_repeat_as_few_as_they_must(
    count: int, batch_size: int, pass_size: int, epochs: int
) -> None:
    steps = processes.draw_equal_steps(count, batch_size, pass_size, epochs, seed=3)
    per_epoch = processes.count_updates(count, batch_size)
    assert len(steps) == epochs * per_epoch
    (size,) = {len(step) for step in steps}
    assert any(size % part == 0 and size // part <= -(-batch_size // pass_size) for part in range(1, pass_size + 1))
    for e in range(epochs):
        order = np.concatenate(steps[e * per_epoch : (e + 1) * per_epoch])
        assert sorted(order[:count]) == list(range(count))
        assert len(order) - count < per_epoch * (1 + -(-batch_size // pass_size))


def test_equal_steps_by_hand() -> None:
    # 5 pairs in steps of 4 at most are 2 steps of 3; in passes of 2 a step has 2 passes, so 4 pairs
    assert [len(step) for step in processes.draw_equal_steps(5, 4, 4, 1, seed=0)] == [3, 3]
    assert [len(step) for step in processes.draw_equal_steps(5, 4, 2, 2, seed=0)] == [4, 4, 4, 4]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_forward_passes_share_out_a_mini_batch_by_length(lengths: list[int], size: int, workers: int) -> None:
    rows = np.arange(len(lengths))
    groups = processes.cut_forward_passes(rows, np.array(lengths), processes.PassLimit(size), workers)
    assert len(groups) == -(-len(lengths) // (size * workers)) * workers
    assert sorted(np.concatenate(groups)) == list(rows)
    assert max(map(len, groups)) <= size
    by_length = [lengths[i] for group in groups for i in group]
    assert by_length == sorted(by_length)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 900), st.booleans())
def test_forward_passes_hold_as_many_tokens_as_they_may(lengths: list[int], tokens: int, packed: bool) -> None:
    rows, sizes = np.arange(len(lengths)), np.array(lengths)
    groups = processes.cut_forward_passes(rows, sizes, processes.PassLimit(1, tokens, packed))
    assert sorted(np.concatenate(groups)) == list(rows)
    for group in groups:
        held = sizes[group].sum() if packed else sizes[group].max() * len(group)
        assert held <= tokens or len(group) == 1


def test_forward_passes_by_hand() -> None:
    sizes = np.array([6, 2, 4, 3, 5])
    padded = processes.cut_forward_passes(np.arange(5), sizes, processes.PassLimit(1, 10))
    # from the longest on: 6 alone (2 * 6 > 10), 5 and 4 (2 * 5), 3 and 2 (2 * 3)
    assert [group.tolist() for group in padded] == [[0], [4, 2], [3, 1]]
    packed = processes.cut_forward_passes(np.arange(5), sizes, processes.PassLimit(1, 10, packed=True))
    assert [group.tolist() for group in packed] == [[0, 2], [4, 3, 1]]  # 6 + 4, 5 + 3 + 2


def test_places_of_packed_tokens() -> None:
    assert [places.tolist() for places in processes.find_packed_places(np.array([2, 1, 3]))] == [[0, 1], [2], [3, 4, 5]]


def test_grouped_batches_waste_little_padding_and_skip_nobody() -> None:
    lengths = np.random.default_rng(0).integers(50, 500, 400)
    steps = processes.draw_grouped_batches(lengths, 16, 25, seed=1)
    assert sorted(np.concatenate(steps)) == list(range(400))
    padded = sum(len(rows) * lengths[rows].max() for rows in steps)
    assert padded / lengths.sum() < 1.15
    again = processes.draw_grouped_batches(lengths, 16, 30, seed=1)
    assert len(again) == 30
    assert all((a == b).all() for a, b in zip(steps, again[:25], strict=True))
