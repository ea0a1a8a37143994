from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.evaluation.results import pass_at_k, pass_hat_k, pass_rates_by_tries


def tries(query, *passed):
    return [{"query_id": query, "repeat": i, "passed": p} for i, p in enumerate(passed)]


def test_by_hand():
    """2 of 5 solved: C(3,2)/C(5,2) = 3/10 of the pairs hold no solution, C(2,2)/C(5,2) = 1/10 hold two."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_hat_k(5, 2, 2) == pytest.approx(0.1)
    assert pass_at_k(5, 2, 4) == 1.0 and pass_hat_k(5, 2, 3) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_both_are_the_means_over_all_choices_of_k_tries(solved, data):
    n, c = len(solved), sum(solved)
    k = data.draw(st.integers(1, n))
    chosen = list(combinations(solved, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, chosen)) / len(chosen))
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
