import pytest

from evaluation_rows import make_evaluation
from steptool.evaluation.compare import split_groups, wilson
from steptool.evaluation.results import summarise_measures
from steptool.records import Evaluation


def row(query: str, passed: float, tier: str = "single", **changes: object) -> Evaluation:
    return make_evaluation(query, passed, tier=tier, **changes)


def test_summary_by_tier_by_hand():
    rows = [
        row("a", 1.0, calls=4, invalid_calls=1, recall=0.5, steps=5, tokens=50),
        row("b", 0.0, tier="long", calls=6, invalid_calls=4, steps=7),
        row("c", 1.0, tier="long", calls=0, steps=1, tokens=10),
    ]
    summary = summarise_measures(rows, draws=200)
    assert set(summary) == {"all", "single", "long"}
    assert summary["all"]["n"] == 3
    assert summary["all"]["pass_rate"] == pytest.approx(2 / 3)
    assert summary["all"]["recall"] == pytest.approx(2.5 / 3)
    assert summary["all"]["invalid_call_rate"] == pytest.approx(5 / 10)
    assert summary["all"]["steps"] == pytest.approx(13 / 3)
    assert summary["all"]["tokens"] == pytest.approx(30)
    assert (summary["long"]["n"], summary["long"]["pass_rate"]) == (2, 0.5)
    assert summary["long"]["invalid_call_rate"] == pytest.approx(4 / 6)
    low, high = summary["all"]["intervals"]["pass_rate"]
    assert 0 <= low <= summary["all"]["pass_rate"] <= high <= 1


def test_a_query_weighs_the_same_however_often_it_was_repeated():
    rows = [row("a", 1.0), row("a", 1.0), row("a", 0.0), row("b", 0.0)]
    summary = summarise_measures(rows, draws=50)["all"]
    assert summary["n"] == 2
    assert summary["pass_rate"] == pytest.approx((2 / 3 + 0) / 2)


def test_no_calls_at_all_are_no_invalid_calls():
    assert summarise_measures([row("a", 0.0, calls=0)], draws=50)["all"]["invalid_call_rate"] == 0.0


def test_intervals_are_those_of_a_binomial_where_they_should_be():
    """400 queries, half passed: the interval's half width is 1.96 * sqrt(.25 / 400) = .049."""
    rows = [row(str(i), float(i % 2)) for i in range(400)]
    low, high = summarise_measures(rows)["all"]["intervals"]["pass_rate"]
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
    with pytest.raises(ValueError, match="got 0 rows of"):
        summarise_measures([])
    with pytest.raises(ValueError, match="one way of decoding"):
        summarise_measures([row("a", 1.0), row("a", 1.0, decoding="sampled")])


def test_wilson_by_hand():
    # 0 of 10: [0, z^2 / (n + z^2)] with z^2 = 3.8415
    assert wilson(0.0, 10) == (0.0, pytest.approx(3.8415 / 13.8415, abs=1e-4))
    # 5 of 10: .5 +- z/(1 + z^2/n) * sqrt(.25/10 + z^2/400)
    assert wilson(0.5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
