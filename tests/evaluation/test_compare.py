import time

import numpy as np
import pytest

from steptool.evaluation.compare import Difference, paired_bootstrap


def rows(passed, **columns):
    """Rows of `evaluations`, from {query: verdict or list of verdicts of its repeats}."""
    listed = {q: p if isinstance(p, list) else [p] for q, p in passed.items()}
    extra = {"calls": 2, "invalid_calls": 0, **columns}
    return [{"query_id": q, "repeat": i, "passed": p, **extra} for q, ps in listed.items() for i, p in enumerate(ps)]


def test_a_certain_difference_has_no_width():
    a, b = rows({"x": 1.0, "y": 1.0, "z": 1.0}), rows({"x": 0.0, "y": 0.0, "z": 0.0})
    assert paired_bootstrap(a, b, 500, 0) == Difference(1.0, 1.0, 1.0, 3)
    assert paired_bootstrap(a, a, 500, 0) == Difference(0.0, 0.0, 0.0, 3)


def test_what_makes_queries_hard_for_both_cancels_out():
    """Both solve the same half of the queries: unpaired the interval would be .14 wide, paired it has no width."""
    same = rows({str(i): float(i % 2) for i in range(400)})
    assert paired_bootstrap(same, list(reversed(same)), 1000, 0) == Difference(0.0, 0.0, 0.0, 400)


def test_the_interval_is_that_of_the_paired_differences():
    """a gains 120 of 400 queries, loses 40: mean .2, deviation sqrt(.4 - .04) = .6, 1.96 * .6 / 20 = .0588."""
    a = rows({str(i): float(i < 120) for i in range(400)})
    b = rows({str(i): float(120 <= i < 160) for i in range(400)})
    got = paired_bootstrap(a, b, 10_000, 0)
    assert got.mean == pytest.approx(0.2)
    assert got.low == pytest.approx(0.2 - 0.0588, abs=0.006)
    assert got.high == pytest.approx(0.2 + 0.0588, abs=0.006)
    assert got.n == 400


def test_all_resamples_of_two_queries_can_be_counted():
    """Differences 1 and 0 are drawn as (0,0), (0,1), (1,0), (1,1): means 0, .5, .5, 1."""
    got = paired_bootstrap(rows({"x": 1.0, "y": 1.0}), rows({"x": 0.0, "y": 1.0}), 5000, 0)
    assert got == Difference(0.5, 0.0, 1.0, 2)


def test_repeats_are_averaged_within_a_query_first():
    a = rows({"x": [1.0, 1.0, 1.0, 0.0], "y": 0.0})
    b = rows({"x": 0.0, "y": [1.0, 0.0]})
    assert paired_bootstrap(a, b, 100, 0).mean == pytest.approx((0.75 - 0.5) / 2)


def test_ratios_are_compared_as_ratios_of_sums():
    a = rows({"x": 1.0}, calls=2, invalid_calls=1) + rows({"y": 1.0}, calls=8, invalid_calls=1)
    b = rows({"x": 1.0, "y": 1.0}, calls=5, invalid_calls=0)
    assert paired_bootstrap(a, b, 100, 0, measure="invalid_call_rate").mean == pytest.approx(2 / 10)


def test_the_seed_decides_and_nothing_else():
    rng = np.random.default_rng(3)
    a, b = (rows({str(i): float(rng.integers(2)) for i in range(50)}) for _ in range(2))
    first = paired_bootstrap(a, b, 300, 7)
    assert first == paired_bootstrap(a[::-1], b, 300, 7)
    assert first != paired_bootstrap(a, b, 300, 8)


def test_different_queries_are_refused_by_name():
    with pytest.raises(ValueError, match=r"1 only in the first \['x'\], 2 only in the second \['u', 'v'\]"):
        paired_bootstrap(rows({"x": 1.0, "y": 1.0}), rows({"y": 1.0, "u": 0.0, "v": 0.0}), 10, 0)


def test_nothing_and_unknown_measures_are_refused():
    with pytest.raises(ValueError, match="no evaluations"):
        paired_bootstrap([], [], 10, 0)
    with pytest.raises(ValueError, match="unknown measure 'grace': expected one of pass_rate, recall"):
        paired_bootstrap(rows({"x": 1.0}), rows({"x": 1.0}), 10, 0, measure="grace")


def test_ten_thousand_resamples_take_no_time_worth_waiting_for():
    a = rows({str(i): float(i % 3 == 0) for i in range(1000)})
    start = time.perf_counter()
    paired_bootstrap(a, a, 10_000, 0)
    assert time.perf_counter() - start < 10
