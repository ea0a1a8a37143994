import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation_rows import make_evaluation
from steptool.evaluation.compare import (
    Comparison,
    Difference,
    compare,
    format_p,
    format_points,
    holm,
    paired_bootstrap,
    permutation_p,
    write_conclusion,
)


def rows(passed, **columns):
    """Evaluations from {query: verdict or list of verdicts of its repeats}."""
    verdicts = {q: p if isinstance(p, list) else [p] for q, p in passed.items()}
    return [
        make_evaluation(q, p, **{"repeat": i, "tier": "", **columns})
        for q, ps in verdicts.items()
        for i, p in enumerate(ps)
    ]


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
    difference = paired_bootstrap(a, b, 10_000, 0)
    assert difference.mean == pytest.approx(0.2)
    assert difference.low == pytest.approx(0.2 - 0.0588, abs=0.006)
    assert difference.high == pytest.approx(0.2 + 0.0588, abs=0.006)
    assert difference.n == 400


def test_all_resamples_of_two_queries_can_be_counted():
    """Differences 1 and 0 are drawn as (0,0), (0,1), (1,0), (1,1): means 0, .5, .5, 1."""
    difference = paired_bootstrap(rows({"x": 1.0, "y": 1.0}), rows({"x": 0.0, "y": 1.0}), 5000, 0)
    assert difference == Difference(0.5, 0.0, 1.0, 2)


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


def test_the_permutation_test_by_hand():
    """a wins 5 of 5 where they differ: of the 32 ways to swap 2 differ as much, p = 1/16; the alike change nothing."""
    a = rows({str(i): 1.0 for i in range(8)})
    b = rows({str(i): float(i >= 5) for i in range(8)})
    assert permutation_p(a, b, 40_000) == pytest.approx(1 / 16, abs=0.006)
    assert permutation_p(b, a, 40_000) == permutation_p(a, b, 40_000)
    assert permutation_p(a, a, 100) == 1.0


def test_the_permutation_test_swaps_numerator_and_denominator_together():
    """Two queries, invalid calls 1 of 2 and 1 of 8 against none of 5: |2/10 - 0| beside swaps of one of them,
    |1/7 - 1/13| and |1/13 - 1/7|: only both ways of swapping all or nothing are as extreme."""
    a = rows({"x": 1.0}, calls=2, invalid_calls=1) + rows({"y": 1.0}, calls=8, invalid_calls=1)
    b = rows({"x": 1.0, "y": 1.0}, calls=5, invalid_calls=0)
    assert permutation_p(a, b, 20_000, measure="invalid_call_rate") == pytest.approx(0.5, abs=0.02)


def test_a_p_value_is_never_zero():
    a, b = rows({str(i): 1.0 for i in range(100)}), rows({str(i): 0.0 for i in range(100)})
    assert permutation_p(a, b, 999) == 1 / 1000


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04 times 4 3 2 1 are .04 .06 .06 .04, and the last may not be below the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


shares = st.floats(0, 1)


@given(st.lists(shares, min_size=1, max_size=8), st.randoms())
def test_holm_keeps_order_lies_between_p_and_bonferroni_and_knows_no_places(p_values, random):
    corrected = holm(p_values)
    for p, c in zip(p_values, corrected, strict=True):
        assert p <= c <= min(1.0, len(p_values) * p + 1e-12) or c == max(corrected)
        assert p <= c <= 1.0
    assert sorted(zip(p_values, corrected, strict=True)) == sorted(
        zip(sorted(p_values), sorted(corrected), strict=True)
    )
    places = list(range(len(p_values)))
    random.shuffle(places)
    assert sorted(holm([p_values[i] for i in places])) == sorted(corrected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=12), st.randoms())
def test_comparisons_stay_within_bounds_and_know_no_order(pairs, random):
    a, b = (rows({f"q{i:02}": pair[side] for i, pair in enumerate(pairs)}) for side in (0, 1))
    (c,) = compare({"b": b, "a": a}, 200)
    assert -1 <= c.difference.low <= c.difference.high <= 1
    assert 0 < c.p <= c.corrected <= 1
    (mirrored,) = compare({"a": a, "b": b}, 200)
    assert mirrored.difference.mean == pytest.approx(-c.difference.mean) and mirrored.p == c.p
    random.shuffle(a)
    assert compare({"b": b, "a": a}, 200) == [c]


def test_every_pair_in_every_group_is_one_family():
    def model(first, second):
        single, long = (
            {f"{tier}{i}": float(i < solved) for i in range(20)} for tier, solved in (("s", first), ("l", second))
        )
        return rows(single, tier="single") + rows(long, tier="long")

    comparisons = compare({"x": model(4, 4), "y": model(20, 4), "z": model(20, 20)}, 2000)
    assert [(c.a, c.b, c.group) for c in comparisons[:4]] == [
        ("y", "x", "all"), ("y", "x", "single"), ("y", "x", "long"), ("z", "x", "all"),
    ]  # fmt: skip
    assert len(comparisons) == 9 and {c.family for c in comparisons} == {9}
    by_pair = {(c.a, c.b, c.group): c for c in comparisons}
    assert by_pair["y", "x", "single"].difference.mean == pytest.approx(0.8)
    assert by_pair["y", "x", "single"].is_shown and by_pair["y", "x", "all"].is_shown
    assert not by_pair["y", "x", "long"].is_shown and by_pair["y", "x", "long"].corrected == 1.0
    assert by_pair["z", "y", "long"].is_shown and not by_pair["z", "y", "single"].is_shown
    assert all(c.corrected >= c.p for c in comparisons)


def test_chance_alone_shows_a_difference_seldom():
    """20 policies that are alike, each of 190 pairs tested at 5%: uncorrected about ten differ, corrected none."""
    rng = np.random.default_rng(5)
    alike = {f"m{i:02}": rows({str(q): float(rng.integers(2)) for q in range(60)}) for i in range(20)}
    comparisons = compare(alike, 2000)
    assert sum(c.p < 0.05 for c in comparisons) > 2
    assert not any(c.is_shown for c in comparisons)


def test_models_on_different_queries_are_not_compared():
    with pytest.raises(ValueError, match="the same queries on both sides"):
        compare({"x": rows({"a": 1.0}), "y": rows({"b": 1.0})}, 10)


def comparison(mean, low, high, p, family=1, group="all"):
    return Comparison("new", "old", group, Difference(mean, low, high, 400), p, p, family)


@pytest.mark.parametrize(
    ("compared", "sentence"),
    [
        (
            comparison(0.12, 0.075, 0.16, 0.0004, 3),
            "new solves 12 points more than old on 400 tasks (95% interval 7.5 to 16, p < 0.001 corrected for 3 "
            "comparisons): new is better here than old.",
        ),
        (
            comparison(-0.01, -0.018, -0.002, 0.02, group="long"),
            "new solves 1 point fewer than old on 400 tasks of the group long (95% interval −1.8 to −0.2, p = 0.020): "
            "new is worse here than old.",
        ),
        (
            comparison(0.05, 0.01, 0.09, 0.09, 3),
            "new solves 5 points more than old on 400 tasks (95% interval 1 to 9, p = 0.090 corrected for 3 "
            "comparisons): no difference is shown, since chance may cause one like it among 3 comparisons.",
        ),
        (
            comparison(0.0, -0.03, 0.04, 1.0),
            "new solves as many as old on 400 tasks (95% interval −3 to 4, p = 1.00): no difference is shown; one of "
            "up to 4 points is possible.",
        ),
    ],
)
def test_the_conclusion_in_words(compared, sentence):
    assert write_conclusion(compared) == sentence


def test_points_and_probabilities():
    assert [format_points(x) for x in (0.304, 0.0132, -0.1, 0.0, -0.0001, 0.05)] == ["30", "1.3", "−10", "0", "0", "5"]
    assert [format_p(p) for p in (0.0004, 0.04, 0.2)] == ["p < 0.001", "p = 0.040", "p = 0.20"]
