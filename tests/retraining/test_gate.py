from dataclasses import replace

import pytest

from evaluation_rows import make_evaluation
from steptool.config import PromotionConfig
from steptool.records import Query, Reference
from steptool.retraining.promotion import decide, find_contaminated, list_categories, read_trained_on, write_trained_on

GAIN, INVALID, TASKS = "gain in pass rate", "rise in invalid calls", "held-out tasks"


def sides(champion, challenger, invalid=((0, 4), (0, 4)), decoding="greedy"):
    """Evaluations of both models on q0, q1, ...; invalid: (invalid calls, calls) of each model in every query."""
    return [
        make_evaluation(f"q{n}", p, model=model, decoding=decoding, invalid_calls=bad, calls=calls)
        for model, passed, (bad, calls) in zip(("base", "steptool"), (champion, challenger), invalid, strict=True)
        for n, p in enumerate(passed)
    ]


def judge(rows, rule=None, categories=None, **options):
    groups = {row.query_id: ("one",) for row in rows} | (categories or {})
    return decide(rows, groups, PromotionConfig.model_validate(rule or {}), draws=2000, **options)


def failed_rules(decision):
    return [criterion.name for criterion in decision.criteria if not criterion.passed]


def test_a_challenger_that_is_better_throughout_is_promoted():
    decision = judge(sides([0.0] * 30, [1.0] * 30))
    assert decision.promote and decision.reasons == [] and decision.left_out == 0
    assert [c.name for c in decision.criteria] == [TASKS, GAIN, "category one", INVALID]
    assert [(c.mean, c.low, c.high, c.tasks) for c in decision.criteria[1:3]] == [(1.0, 1.0, 1.0, 30)] * 2


def test_the_same_results_are_no_gain():
    decision = judge(sides([1.0, 0.0] * 15, [1.0, 0.0] * 15))
    assert decision.reasons == [
        "gain in pass rate: 0 points on 30 tasks (95% interval 0 to 0); its lower end has to be above 0"
    ]
    assert judge(sides([1.0, 0.0] * 15, [1.0, 0.0] * 15), {"min_gain": -0.01}).promote  # not worse is enough


@pytest.mark.parametrize(("min_gain", "promoted"), [(0.49, True), (0.5, False), (0.51, False)])
def test_the_whole_interval_has_to_lie_above_the_least_gain(min_gain, promoted):
    """Every task gains a half, so that the interval is the point .5."""
    assert judge(sides([0.5] * 30, [1.0] * 30), {"min_gain": min_gain}).promote is promoted


def test_a_gain_that_may_be_chance_is_refused():
    """10 of 40 tasks gained and 6 lost: mean .1, deviation of the mean sqrt((.4 - .01) / 40) = .099."""
    champion, challenger = [0.0] * 10 + [1.0] * 6 + [0.0] * 24, [1.0] * 10 + [0.0] * 6 + [0.0] * 24
    decision = judge(sides(champion, challenger))
    gain = decision.criteria[1]
    assert failed_rules(decision) == [GAIN]
    assert gain.mean == pytest.approx(0.1) and gain.low == pytest.approx(0.1 - 1.96 * 0.099, abs=0.03)


def test_rounding_decides_nothing():
    """.7 - .6 is .09999999999999998 in floating point, and .6 - .7 its negative."""
    assert not judge(sides([0.7] * 30, [0.8] * 30), {"min_gain": 0.1}).promote
    decision = judge(sides([0.7] * 30, [0.6] * 30), {"min_gain": -1.0, "max_category_loss": 0.1})
    assert decision.promote


@pytest.mark.parametrize(("tasks", "promoted"), [(29, False), (30, True)])
def test_too_few_tasks_promote_nothing(tasks, promoted):
    decision = judge(sides([0.0] * tasks, [1.0] * tasks))
    assert decision.promote is promoted
    assert failed_rules(decision) == [TASKS] * (not promoted)


def mixed_rows(gained, lost):
    """`gained` tasks of the category one won, `lost` tasks of the category two lost."""
    rows = sides([0.0] * gained + [1.0] * lost, [1.0] * gained + [0.0] * lost)
    return rows, {f"q{gained + n}": ("two",) for n in range(lost)}


def test_a_category_that_loses_stands_in_the_way():
    """8 of 8 lost: p = 2 / 2^8 = .008."""
    rows, categories = mixed_rows(60, 8)
    decision = judge(rows, categories=categories)
    assert failed_rules(decision) == ["category two"]
    assert decision.criteria[3].mean == -1.0
    assert judge(rows, {"max_category_loss": 1.0}, categories).promote


@pytest.mark.parametrize("lost", [1, 2, 4, 5])
def test_a_few_tasks_of_a_category_are_no_proof(lost):
    """Of 5 lost of 5 p is 2 / 2^5 = .063, whatever the number of categories."""
    rows, categories = mixed_rows(60, lost)
    assert judge(rows, categories=categories).promote


def test_other_categories_do_not_excuse_a_loss():
    """6 of 6 lost: p = 2 / 2^6 = .031, whatever became of the others."""
    rows, categories = mixed_rows(60, 6)
    assert failed_rules(judge(rows, categories=categories)) == ["category two"]
    same = {f"q{n}": ("three",) for n in range(66, 70)}
    rows = sides([0.0] * 60 + [1.0] * 10, [1.0] * 60 + [0.0] * 6 + [1.0] * 4)
    assert failed_rules(judge(rows, categories=categories | same)) == ["category two"]


@pytest.mark.parametrize(("allowed", "promoted"), [(0.09, False), (0.1, True)])
def test_a_loss_up_to_the_limit_is_allowed(allowed, promoted):
    """10 of 100 tasks lost, none gained: shown (p = 2 / 2^10), and .1 exactly."""
    rows = sides([0.0] * 100 + [1.0] * 100, [1.0] * 100 + [0.0] * 10 + [1.0] * 90)
    categories = {f"q{100 + n}": ("two",) for n in range(100)}
    assert judge(rows, {"max_category_loss": allowed}, categories).promote is promoted


def test_a_task_counts_in_each_of_its_categories():
    rows = sides([0.0] * 60 + [1.0] * 8, [1.0] * 60 + [0.0] * 8)
    both = {f"q{60 + n}": ("two", "three") for n in range(8)}
    assert failed_rules(judge(rows, categories=both)) == ["category three", "category two"]


@pytest.mark.parametrize(("allowed", "promoted"), [(0.0, False), (0.24, False), (0.25, True)])
def test_more_invalid_calls_stand_in_the_way(allowed, promoted):
    """One call of four more in every task, so that the interval is the point .25."""
    rows = sides([0.0] * 30, [1.0] * 30, ((1, 4), (2, 4)))
    decision = judge(rows, {"max_invalid_rise": allowed})
    assert decision.promote is promoted
    assert failed_rules(decision) == [INVALID] * (not promoted)


def test_one_invalid_call_more_is_no_proof():
    rows = sides([0.0] * 30, [1.0] * 30)
    rows[-1] = replace(rows[-1], invalid_calls=1)
    decision = judge(rows)
    assert decision.promote and decision.criteria[-1].mean > 0


def test_tasks_that_the_champion_was_trained_on_do_not_count():
    rows = sides([1.0] * 10 + [0.0] * 30, [0.0] * 10 + [1.0] * 30)
    decision = judge(rows, contaminated={f"q{n}" for n in range(10)})
    assert decision.promote and decision.left_out == 10
    without_tasks = judge(rows, contaminated={f"q{n}" for n in range(40)})
    assert not without_tasks.promote and failed_rules(without_tasks) == [TASKS] and len(without_tasks.criteria) == 1


def test_only_greedy_episodes_count():
    rows = sides([0.0] * 30, [1.0] * 30) + sides([1.0] * 30, [0.0] * 30, decoding="sampled")
    assert judge(rows).promote


def test_both_models_need_the_same_tasks():
    with pytest.raises(ValueError, match="the same queries on both sides"):
        judge(sides([0.0] * 30, [1.0] * 31))


def test_categories_are_those_of_toolbench_else_tier_else_environment():
    apis = {"rain_for_sky": ["Weather", "sky", "rain"], "rate_for_money": ["Finance", "money", "rate"]}
    query = Query("q", "heldout", "replay", "Go.", (), Reference(environment={"toolbench": apis}), tier="G1")
    assert list_categories(query) == ("Finance", "Weather")
    assert list_categories(Query("q", "heldout", "desk", "Go.", (), tier="long")) == ("long",)
    assert list_categories(Query("q", "heldout", "desk", "Go.", ())) == ("desk",)


def test_tasks_without_a_verdict_are_not_measurable_and_promote_nobody():
    decision = judge(sides([None, None], [None, None]), {"min_tasks": 1})
    assert not decision.promote
    assert decision.reasons == [
        "held-out tasks: 0 in the comparison; at least 1 are needed "
        "(2 more have no verdict on both sides: their pass rate is not measurable)"
    ]


def test_a_category_without_a_verdict_is_said_to_be_not_measurable():
    groups = {"q30": ("other",), "q31": ("other",)}
    decision = judge(sides([0.0] * 30 + [None] * 2, [1.0] * 30 + [None] * 2), categories=groups)
    statements = {c.name: c.statement for c in decision.criteria}
    assert decision.promote and statements["category other"] == "not measurable: no task has a verdict on both sides"
    assert statements[TASKS].endswith("(2 more have no verdict on both sides: their pass rate is not measurable)")


def query(text, split="train"):
    return Query(f"id of {text}", split, "desk", text, ())


def test_a_model_lists_the_training_tasks_of_itself_and_of_the_models_before_it(tmp_path):
    assert read_trained_on(str(tmp_path)) == frozenset()
    write_trained_on(tmp_path, [query("a"), query("b", "heldout")], frozenset())
    first = read_trained_on(str(tmp_path))
    write_trained_on(tmp_path, [query("c"), query("d", "validation")], first)
    both = read_trained_on(f"file://{tmp_path}")
    held_out = [query(text, "heldout") for text in ("  a ", "b", "c", "d")]  # white space makes no other task
    assert find_contaminated(held_out, first) == {"id of   a "}
    assert find_contaminated(held_out, both) == {"id of   a ", "id of c"}
