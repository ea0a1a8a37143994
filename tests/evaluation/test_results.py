from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation_rows import make_evaluation
from steptool.evaluation.compare import split_groups, wilson
from steptool.evaluation.results import (
    CostPerSolved,
    cost_per_solved,
    pass_at_k,
    pass_hat_k,
    pass_rates_by_tries,
    summarise,
)
from steptool.records import Evaluation


def tries(query, *passed):
    return [make_evaluation(query, p, repeat=i) for i, p in enumerate(passed)]


def test_by_hand():
    """2 of 5 solved: C(3,2)/C(5,2) = 3/10 of the pairs hold no solution, C(2,2)/C(5,2) = 1/10 hold two."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_hat_k(5, 2, 2) == pytest.approx(0.1)
    assert pass_at_k(5, 2, 4) == 1.0 and pass_hat_k(5, 2, 3) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_both_are_the_means_over_all_choices_of_k_tries(solved, data):
    n, c = len(solved), sum(solved)
    k = data.draw(st.integers(1, n))
    choices = list(combinations(solved, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, choices)) / len(choices))
    assert pass_hat_k(n, c, k) <= c / n + 1e-12 and pass_at_k(n, c, k) >= c / n - 1e-12


def test_means_over_tasks_for_each_k():
    """Of 3 tries x solves 1, y all, z none; half solved is not solved. k = 2: at (2/3 + 1 + 0)/3, all (0 + 1 + 0)/3."""
    rows = tries("x", 1.0, 0.0, 0.5) + tries("y", 1.0, 1.0, 1.0) + tries("z", 0.0, 0.0, 0.5)
    got = pass_rates_by_tries(rows)
    assert list(got) == [1, 2, 3]
    assert got[1] == (pytest.approx(4 / 9), pytest.approx(4 / 9))
    assert got[2] == (pytest.approx(5 / 9), pytest.approx(1 / 3))
    assert got[3] == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert pass_rates_by_tries(list(reversed(rows))) == got


def test_the_task_with_the_fewest_tries_sets_the_largest_k():
    assert list(pass_rates_by_tries(tries("x", 1.0, 0.0) + tries("y", *[1.0] * 8))) == [1, 2]
    assert list(pass_rates_by_tries(tries("x", *[1.0] * 8))) == [1, 2, 4, 8]
    assert pass_rates_by_tries([]) == {}


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    for estimate in (pass_at_k, pass_hat_k):
        with pytest.raises(ValueError, match=f"n = {n} tries, c = {c} solved, k = {k}"):
            estimate(n, c, k)


def episode_cost(passed, money):
    return make_evaluation("q", passed, tokens=30, seconds=1.5, money=money)


def test_what_was_spent_in_vain_counts():
    """Three episodes of 30 tokens and 1.5 s for 1.5 solved tasks."""
    assert cost_per_solved([episode_cost(1.0, 0.25), episode_cost(0.0, 0.5), episode_cost(0.5, 0.75)]) == CostPerSolved(
        60.0, 3.0, 1.0
    )


def test_an_unknown_price_is_no_price_of_zero():
    assert cost_per_solved([episode_cost(1.0, 0.0), episode_cost(1.0, None)]) == CostPerSolved(30.0, 1.5, None)


def test_nothing_solved_has_no_cost_per_solved_task():
    assert cost_per_solved([episode_cost(0.0, 1.0)]) == CostPerSolved(None, None, None)


def test_nobody_counts_the_tokens_of_what_is_played_back():
    assert cost_per_solved([replace(episode_cost(1.0, None), tokens=0)]).tokens is None


def row(query: str, passed: float, tier: str = "single", **changes: object) -> Evaluation:
    return make_evaluation(query, passed, tier=tier, **changes)


def test_summary_by_tier_by_hand():
    rows = [
        row("a", 1.0, calls=4, invalid_calls=1, recall=0.5, steps=5, tokens=50),
        row("b", 0.0, tier="long", calls=6, invalid_calls=4, steps=7),
        row("c", 1.0, tier="long", calls=0, steps=1, tokens=10),
    ]
    got = summarise(rows, draws=200)
    assert set(got) == {"all", "single", "long"}
    assert got["all"]["n"] == 3
    assert got["all"]["pass_rate"] == pytest.approx(2 / 3)
    assert got["all"]["recall"] == pytest.approx(2.5 / 3)
    assert got["all"]["invalid_call_rate"] == pytest.approx(5 / 10)
    assert got["all"]["steps"] == pytest.approx(13 / 3)
    assert got["all"]["tokens"] == pytest.approx(30)
    assert (got["long"]["n"], got["long"]["pass_rate"]) == (2, 0.5)
    assert got["long"]["invalid_call_rate"] == pytest.approx(4 / 6)
    low, high = got["all"]["intervals"]["pass_rate"]
    assert 0 <= low <= got["all"]["pass_rate"] <= high <= 1


def test_a_query_weighs_the_same_however_often_it_was_repeated():
    rows = [row("a", 1.0), row("a", 1.0), row("a", 0.0), row("b", 0.0)]
    got = summarise(rows, draws=50)["all"]
    assert got["n"] == 2
    assert got["pass_rate"] == pytest.approx((2 / 3 + 0) / 2)


def test_no_calls_at_all_are_no_invalid_calls():
    assert summarise([row("a", 0.0, calls=0)], draws=50)["all"]["invalid_call_rate"] == 0.0


def test_intervals_are_those_of_a_binomial_where_they_should_be():
    """400 queries, half passed: the interval's half width is 1.96 * sqrt(.25 / 400) = .049."""
    rows = [row(str(i), float(i % 2)) for i in range(400)]
    low, high = summarise(rows)["all"]["intervals"]["pass_rate"]
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)


def test_groups_are_splits_and_tiers_where_there_are_several():
    rows = [row("a", 1.0), row("b", 1.0, tier="", split="train"), row("c", 0.0)]
    assert {name: [r.query_id for r in part] for name, part in split_groups(rows).items()} == {
        "all": ["a", "b", "c"],
        "heldout": ["a", "c"],
        "train": ["b"],
        "single": ["a", "c"],
        "no tier": ["b"],
    }
    assert list(split_groups([row("a", 1.0, tier="")])) == ["all"]
    assert split_groups([]) == {}


def test_nothing_or_a_mixture_cannot_be_summarised():
    with pytest.raises(ValueError, match="the 0 rows hold"):
        summarise([])
    with pytest.raises(ValueError, match="one way of decoding"):
        summarise([row("a", 1.0), row("a", 1.0, decoding="sampled")])


def test_wilson_by_hand():
    # 0 of 10: [0, z^2 / (n + z^2)] with z^2 = 3.8415
    assert wilson(0.0, 10) == (0.0, pytest.approx(3.8415 / 13.8415, abs=1e-4))
    # 5 of 10: .5 +- z/(1 + z^2/n) * sqrt(.25/10 + z^2/400)
    assert wilson(0.5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
