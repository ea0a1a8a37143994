from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.schedule import derived_seed, round_items, shard_items


@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 6), st.integers(-3, 3))
def test_nothing_is_drawn_twice_before_everything_came_once(items: int, count: int, rounds: int, seed: int) -> None:
    drawn = [x for r in range(rounds) for x in round_items(range(items), count, r, seed)]
    assert len(drawn) == count * rounds
    times = Counter(drawn)
    assert max(times.values()) - min(times[x] for x in range(items)) <= 1


def test_rounds_repeat_exactly_and_depend_on_the_seed() -> None:
    first = round_items(range(100), 10, 2, seed=0)
    assert first == round_items(range(100), 10, 2, seed=0)
    assert first != round_items(range(100), 10, 2, seed=1)


def test_a_second_pass_over_the_items_has_another_order() -> None:
    assert round_items(range(50), 50, 0, seed=0) != round_items(range(50), 50, 1, seed=0)


@given(st.integers(0, 40), st.integers(1, 7))
def test_shards_share_out_every_item_once(items: int, shards: int) -> None:
    parts = [shard_items(range(items), s, shards) for s in range(shards)]
    assert sorted(x for part in parts for x in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        shard_items([1, 2, 3], 2, 2)


def test_a_round_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        round_items([], 3, 0, 0)


def test_seeds_of_rounds_and_shards_differ() -> None:
    seeds = {derived_seed(s, r, n) for s in (0, 1) for r in range(20) for n in range(4)}
    assert len(seeds) == 2 * 20 * 4
    assert all(0 <= s < 2**31 for s in seeds)
