from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation_rows import make_evaluation
from steptool.evaluation.measures import (
    CostPerSolved,
    apply_verdicts,
    cost_per_solved,
    measure_episodes,
    pass_at_k,
    pass_hat_k,
    pass_rates_by_tries,
)
from steptool.records import (
    FINISH,
    Evaluation,
    Query,
    Reference,
    Step,
    StepStatus,
    StopReason,
    ToolCall,
    Trajectory,
    Verdict,
)
from steptool.records.tables import write_records
from steptool.rollout.episode import TurnCost

FINISHED = Step(ToolCall(FINISH, {"return_type": "give_answer", "final_answer": "7"}), StepStatus.FINISH, "")


def make_call(name: str, status: StepStatus = StepStatus.OK) -> Step:
    return Step(ToolCall(name, {}), status, "{}")


def make_query(query_id: str = "q1", tier: str = "single", **reference: object) -> Query:
    return Query(query_id, "heldout", "desk", "what is it?", (), Reference.from_json(reference), tier=tier)


def make_trajectory(*steps: Step, query_id: str = "q1", solved: float | None = 1.0) -> Trajectory:
    return Trajectory(
        trajectory_id=f"t-{query_id}",
        query_id=query_id,
        environment="desk",
        tier="as recorded",
        policy="p",
        round=-1,
        sample=0,
        temperature=0.0,
        messages=[],
        input_ids=np.zeros(20, dtype=np.int32),
        spans=[(3, 8), (12, 14)],
        logprobs=np.zeros(7, dtype=np.float32),
        steps=steps,
        stop_reason=StopReason.FINISHED,
        final_answer="7",
        solved=solved,
        seconds=1.5,
    )


def test_an_episode_is_counted_by_hand(tmp_path):
    query = make_query(calls=[{"name": n, "arguments": {}} for n in ("f", "f", "g", "h")])
    episode = make_trajectory(
        make_call("f"),
        make_call("g", StepStatus.TOOL_ERROR),
        make_call("x", StepStatus.UNKNOWN_TOOL),
        Step(None, StepStatus.MALFORMED, "no call found"),
        make_call("h"),
        FINISHED,
    )
    rows = measure_episodes([query], [episode], "steptool", "greedy", repeat=2)
    assert rows == [
        Evaluation(
            query_id="q1",
            split="heldout",
            tier="single",
            model="steptool",
            decoding="greedy",
            repeat=2,
            trajectory_id="t-q1",
            passed=1.0,
            verdict_source="environment",
            recall=0.5,  # f once of twice, h; g failed
            steps=6,
            calls=5,
            invalid_calls=3,
            redundant_calls=0,
            tokens=7,
            prompt_tokens=None,
            money=None,
            seconds=1.5,
            stop_reason="finished",
        )
    ]
    write_records(tmp_path / "evaluations.parquet", rows, Evaluation)


@pytest.mark.parametrize(
    ("reference", "steps", "recall"),
    [
        ({}, [], None),
        ({"calls": []}, [make_call("f")], None),
        ({"tools": ["f", "g"]}, [make_call("f"), make_call("f")], 0.5),
        ({"tools": ["f", "f"]}, [make_call("f")], 1.0),
        ({"tools": ["f"], "calls": [{"name": "g", "arguments": {}}]}, [make_call("f")], 0.0),
        ({"tools": ["f"]}, [make_call("f", StepStatus.INVALID_ARGUMENTS)], 0.0),
    ],
)
def test_recall(reference, steps, recall):
    assert measure_episodes([make_query(**reference)], [make_trajectory(*steps)], "m", "greedy")[0].recall == recall


@pytest.mark.parametrize(
    ("reference", "passed", "source"),
    [({"answer": "7"}, 1.0, "reference"), ({"answer": "8"}, 0.0, "reference"), ({}, None, "none")],
)
def test_without_a_verdict_of_the_environment_the_reference_answer_decides(reference, passed, source):
    row = measure_episodes([make_query(**reference)], [make_trajectory(FINISHED, solved=None)], "m", "greedy")[0]
    assert (row.passed, row.verdict_source) == (passed, source)


def test_an_episode_that_gives_up_is_not_measurable_either_without_check_and_reference():
    silent = replace(make_trajectory(solved=None), final_answer=None, stop_reason=StopReason.GAVE_UP)
    row = measure_episodes([make_query()], [silent], "m", "greedy")[0]
    assert (row.passed, row.recall) == (None, None)


def test_a_check_that_failed_is_not_replaced_by_the_reference_answer():
    failed = replace(make_trajectory(FINISHED, solved=None), check_error="'solved' failed: KeyError: 'anwser'")
    (row,) = measure_episodes([make_query(answer="7")], [failed], "m", "greedy")
    assert (row.passed, row.verdict_source) == (None, "failed")
    assert apply_verdicts([row], [verdict("q1", "solved")]) == [row]


def verdict(query, status, repeat=0, model="m"):
    return Verdict(query, model, repeat, status)


def test_a_judge_decides_where_there_is_neither_check_nor_reference():
    queries = [make_query(q) for q in ("a", "b", "c", "d")]
    episodes = [make_trajectory(FINISHED, query_id=q, solved=None) for q in ("a", "b", "c")]
    episodes.append(replace(make_trajectory(query_id="d", solved=None), stop_reason=StopReason.STEP_LIMIT))
    rows = measure_episodes(queries, episodes, "m", "greedy")
    verdicts = [verdict("a", "solved"), verdict("a", "unsure", 1), verdict("b", None), verdict("a", "unsolved", 0, "n")]
    assert [(r.passed, r.verdict_source) for r in apply_verdicts(rows, verdicts)] == [
        (0.75, "judge"),  # (1 + .5) / 2
        (None, "none"),  # the judge gave no verdict
        (None, "none"),  # nor was it asked
        (0.0, "rule"),  # without an answer nothing is solved
    ]
    assert apply_verdicts(rows, []) == rows
    checked = measure_episodes(queries[:1], [make_trajectory(FINISHED, query_id="a", solved=0.0)], "m", "greedy")
    assert apply_verdicts(checked, verdicts) == checked  # the environment's verdict stands
    sampled = measure_episodes(queries[:1], episodes[:1], "m", "sampled")
    assert apply_verdicts(sampled, verdicts) == sampled  # the verdicts are on greedy episodes


def test_the_environments_verdict_stands_against_the_text():
    assert measure_episodes([make_query(answer="7")], [make_trajectory(solved=0.0)], "m", "greedy")[0].passed == 0.0


def test_a_trajectory_of_an_unknown_query_is_refused():
    with pytest.raises(ValueError, match="'t-q9' answers the query 'q9', which is not among the 1 queries"):
        measure_episodes([make_query()], [make_trajectory(query_id="q9")], "m", "greedy")


def test_what_a_search_abandoned_and_what_an_endpoint_counted_is_spent():
    searched = replace(make_trajectory(FINISHED), abandoned_turns=2, abandoned_tokens=13)
    assert measure_episodes([make_query()], [searched], "m", "greedy")[0].tokens == 20
    row = measure_episodes([make_query()], [searched], "m", "greedy", spent={"t-q1": TurnCost(40, 900, 0.5)})[0]
    assert (row.tokens, row.prompt_tokens, row.money) == (40, 900, 0.5)


def test_redundant_calls_are_counted():
    steps = [make_call("f"), make_call("f"), make_call("g"), FINISHED]
    assert measure_episodes([make_query()], [make_trajectory(*steps)], "m", "greedy")[0].redundant_calls == 1


def test_a_stored_verdict_counts_even_where_the_recorded_answer_could_not_be_read():
    """The Finish was cut by a limit of tokens, so that the episode seems to have given up."""
    cut = replace(make_trajectory(solved=None), stop_reason=StopReason.GAVE_UP, final_answer=None)
    rows = measure_episodes([make_query()], [cut], "m", "greedy")
    (row,) = apply_verdicts(rows, [verdict("q1", "solved"), verdict("q1", "solved", 1)])
    assert (row.passed, row.verdict_source) == (1.0, "judge")


def tries(query, *passed):
    return [make_evaluation(query, p, repeat=i) for i, p in enumerate(passed)]


def test_pass_at_k_and_pass_hat_k_by_hand():
    """2 of 5 solved: C(3,2)/C(5,2) = 3/10 of the pairs hold no solution, C(2,2)/C(5,2) = 1/10 hold two."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_hat_k(5, 2, 2) == pytest.approx(0.1)
    assert pass_at_k(5, 2, 4) == 1.0 and pass_hat_k(5, 2, 3) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_and_pass_hat_k_are_means_over_all_choices_of_k_tries(solved, data):
    n, c = len(solved), sum(solved)
    k = data.draw(st.integers(1, n))
    choices = list(combinations(solved, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, choices)) / len(choices))
    assert pass_hat_k(n, c, k) <= c / n + 1e-12 and pass_at_k(n, c, k) >= c / n - 1e-12


def test_means_over_tasks_for_each_k():
    """Of 3 tries x solves 1, y all, z none; half solved is not solved. k = 2: at (2/3 + 1 + 0)/3, all (0 + 1 + 0)/3."""
    rows = tries("x", 1.0, 0.0, 0.5) + tries("y", 1.0, 1.0, 1.0) + tries("z", 0.0, 0.0, 0.5)
    rates = pass_rates_by_tries(rows)
    assert list(rates) == [1, 2, 3]
    assert rates[1] == (pytest.approx(4 / 9), pytest.approx(4 / 9))
    assert rates[2] == (pytest.approx(5 / 9), pytest.approx(1 / 3))
    assert rates[3] == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert pass_rates_by_tries(list(reversed(rows))) == rates


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
