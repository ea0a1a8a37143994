import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.rewards.statistics import (
    auroc,
    bin_by_size,
    chance_auroc,
    confusion,
    correlation,
    difference,
    kappa,
    slope,
    stability_index,
)

SCORES = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12)


def test_kappa_by_hand() -> None:
    # 50 steps, both yes 20, both no 15, only the first 5, only the second 10. Observed .7; by chance .5 * .6 + .5 * .4.
    table = confusion([1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert table.tolist() == [[15, 10], [5, 20]]
    estimate = kappa(table)
    assert estimate is not None and estimate.n == 50
    assert estimate.value == pytest.approx((0.7 - 0.5) / 0.5)
    assert estimate.high - estimate.value == pytest.approx(1.959964 * math.sqrt(0.7 * 0.3 / 50) / 0.5)


def test_kappa_is_one_for_the_same_zero_for_chance_and_undefined_without_two_kinds() -> None:
    assert kappa(confusion([0, 1, 1], [0, 1, 1])).value == 1  # type: ignore[union-attr]
    assert kappa(confusion([0, 0, 1, 1], [0, 1, 0, 1])).value == 0  # type: ignore[union-attr]
    assert kappa(confusion([1, 1], [1, 1])) is None
    assert kappa(confusion([], [])) is None


def test_auroc_by_hand() -> None:
    # Positives .9 and .5, negatives .5, .4 and .1: the pairs won are 3 and 2.5 of 6.
    estimate = auroc([0.9, 0.5, 0.5, 0.4, 0.1], [1, 1, 0, 0, 0])
    assert estimate is not None and estimate.value == pytest.approx(5.5 / 6)
    assert auroc([1, 2], [1, 1]) is None
    assert auroc([], []) is None


@given(SCORES)
def test_auroc_is_the_share_of_pairs_won(points: list[tuple[float, bool]]) -> None:
    ups, downs = ([s for s, p in points if p is kind] for kind in (True, False))
    estimate = auroc([s for s, _ in points], [p for _, p in points])
    if estimate is None:
        assert not ups or not downs
    else:
        wins = sum((u > d) + (u == d) / 2 for u in ups for d in downs)
        assert estimate.value == pytest.approx(wins / len(ups) / len(downs))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_correlation_and_slope_by_hand() -> None:
    # Deviations (-1.5, -.5, .5, 1.5) and (-1, -1, 0, 2): products 5, squares 5 and 6.
    estimate = correlation([1, 2, 3, 4], [0, 0, 1, 3])
    assert estimate is not None and estimate.value == pytest.approx(5 / math.sqrt(30))
    assert slope([1, 2, 3, 4], [0, 0, 1, 3]) == pytest.approx(1.0)
    assert correlation([1, 1, 1, 1], [0, 1, 2, 3]) is None
    assert slope([2, 2], [0, 1]) is None


def test_difference_of_means_with_welchs_error() -> None:
    estimate = difference([0, 2], [3, 5, 7])  # variances 2 and 4: error sqrt(2 / 2 + 4 / 3)
    assert estimate is not None and estimate.value == 4
    assert estimate.high - 4 == pytest.approx(1.959964 * math.sqrt(1 + 4 / 3))
    assert difference([1], [2, 3]) is None


def test_stability_index_by_hand() -> None:
    # Shares of 0 and 1: half and half before, a quarter and three quarters now.
    expected = (0.25 - 0.5) * math.log(0.5) + (0.75 - 0.5) * math.log(1.5)
    assert stability_index([0, 1] * 10, [0, 1, 1, 1] * 10) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    before = rng.normal(size=20_000)
    assert stability_index(before, rng.normal(size=20_000)) < 0.01  # type: ignore[operator]
    assert stability_index(before, rng.normal(1.0, size=20_000)) > 0.25  # type: ignore[operator]
    assert stability_index([], [1]) is None


def test_bins_are_single_sizes_or_like_numbers() -> None:
    few = bin_by_size([2, 2, 3], [0.0, 1.0, 4.0])
    assert [(b.low, b.high, b.reward.value, b.reward.n) for b in few] == [(2, 2, 0.5, 2), (3, 3, 4.0, 1)]
    many = bin_by_size(list(range(100)), [1.0] * 100, bins=4)
    assert [(b.low, b.high, b.reward.n) for b in many] == [(0, 24, 25), (25, 49, 25), (50, 74, 25), (75, 99, 25)]


def test_the_range_of_a_chance_auroc_by_hand():
    """Of 12 and 12: deviation sqrt(25 / (12 * 144)) = .1203; of 1 and 1 sqrt(3 / 12) = .5, wider than [0, 1]."""
    assert chance_auroc(12, 12) == (pytest.approx(0.5 - 1.96 * 0.1203, abs=1e-3), pytest.approx(0.7358, abs=1e-3))
    assert chance_auroc(1, 1)[0] < 0 and chance_auroc(1, 1)[1] > 1
