import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.desk.tasks import TIERS, Expert, draw_query
from steptool.records import Reference, Step, StepStatus, StopReason
from steptool.rewards.annotators import DataFlowRules, OverlapRules, PublishedRules, annotate, make_annotator, overlap


@pytest.mark.parametrize(
    "observation",
    [
        '{"error": "", "response": "{\'message\': \'Too many requests\'}"}',
        '{"error": "", "response": "Error: the town of Oslo is unknown"}',
        "{'error': 'Unauthorized', 'response': 'the town of Os",
    ],
)
def test_an_error_that_hides_in_the_text_neither_succeeds_nor_contributes(
    observation, make_query, make_step, make_trajectory
):
    trajectory = make_trajectory([make_step("f", observation)], observation)
    for rules in (DataFlowRules(), OverlapRules()):
        first, _ = rules.annotate(make_query(), trajectory)
        assert (first.succ_calling, first.contribution) == (0, 0)
        assert first.rationale.startswith("failed: ")


@given(st.text(), st.text())
def test_the_overlap_rules_take_any_text(observation, answer):
    from steptool.records import Query, ToolCall, Trajectory

    step = Step(ToolCall("f", {}), StepStatus.OK, '{"error": "", "response": "' + observation)
    none = np.zeros(0, dtype=np.int32)
    t = Trajectory(
        "t", "q", "e", "", "p", 0, 0, 1.0, [], none, [], none, [step], StopReason.FINISHED, answer, None, 0.0
    )
    for rules in (PublishedRules(), OverlapRules()):
        (score,) = rules.annotate(Query("q", "train", "e", "?", ()), t)
        assert score.contribution in (0, 1) and score.succ_calling in (0, 1)


def test_failed_steps_and_repeats_contribute_nothing_but_a_retry_may(make_query, make_step, make_trajectory):
    failed = make_step("get_weather", {"error": "", "response": "{'success': False, 'temperature': 17}"}, city="oslo")
    worked = make_step("get_weather", {"temperature": 18}, city="oslo")
    other_weather = make_step("get_weather", {"temperature": 19}, city="oslo")
    trajectory = make_trajectory([failed, worked, other_weather], "17 or 18 or 19")
    scores = DataFlowRules().annotate(make_query(), trajectory)
    assert [s.contribution for s in scores] == [0, 1, 0, None]
    assert [s.succ_calling for s in scores] == [0, 1, 1, 1]


def test_without_an_answer_nothing_contributes(make_query, make_step, make_trajectory):
    steps = [make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03")]
    scores = DataFlowRules().annotate(make_query(), make_trajectory(steps))
    assert [(s.succ_calling, s.contribution, s.is_solved) for s in scores] == [(1, 0, 0)]


@pytest.mark.parametrize(
    ("status", "succ"),
    [
        (StepStatus.OK, 1),
        (StepStatus.TOOL_ERROR, 0),
        (StepStatus.INVALID_ARGUMENTS, 0),
        (StepStatus.UNKNOWN_TOOL, 0),
        (StepStatus.MALFORMED, 0),
    ],
)
def test_succ_calling_follows_the_status(status, succ, make_query, make_step, make_trajectory):
    trajectory = make_trajectory([make_step("f", {"value": 3}, status)], "3")
    assert DataFlowRules().annotate(make_query(), trajectory)[0].succ_calling == succ


def test_text_without_a_call_is_a_failed_step(make_query, make_trajectory):
    trajectory = make_trajectory([Step(None, StepStatus.MALFORMED, "no call found")], "no call found")
    score = DataFlowRules().annotate(make_query(), trajectory)[0]
    assert (score.succ_calling, score.contribution, score.rationale) == (0, 0, "failed: malformed")


def test_overlap_is_the_share_of_the_observation_found_in_the_answer():
    assert overlap("abcdef", "xaxbxcx") == 0.5
    assert overlap("", "answer") == 0
    assert overlap("abc", "") == 0


def test_the_rules_agree_with_the_desk_about_its_experts_steps():
    """Text alone against the world's truth: nearly all needed calls are found, hardly any needless one is praised."""
    rng, queries = random.Random(0), [draw_query("train", t, f"agreement/{i}") for t in TIERS for i in range(40)]
    trajectories = [Expert(q, rng, 0.35, 0.0).attempt() for q in queries]
    solved = [t for t in trajectories if t.solved == 1]
    by_rule, by_truth = (annotate(queries, solved, make_annotator(name)) for name in ("rules", "truth"))
    pairs = [(a.contribution, b.contribution) for a, b in zip(by_rule, by_truth, strict=True)]
    needed = [rule for rule, truth in pairs if truth == 1]
    needless = [rule for rule, truth in pairs if truth == 0]
    assert len(solved) > 30 and len(needless) > 30
    assert sum(needed) / len(needed) > 0.93
    assert sum(needless) / len(needless) < 0.05
    assert [r.succ_calling for r in by_rule] == [r.succ_calling for r in by_truth]


def test_where_the_check_failed_is_solved_is_missing_and_not_guessed(make_query, make_trajectory):
    query = make_query(reference=Reference(answer="7"))
    failed = make_trajectory([], "7", check_error="'solved' failed: KeyError: 'anwser'")
    assert [score.is_solved for score in DataFlowRules().annotate(query, failed)] == [None]


@pytest.mark.parametrize(
    ("observation", "answer", "share"),
    [
        # Of "[]" nothing is in {"return_type": "give_answer", "final_answer": "..."}.
        (
            '{"error": "", "response": []}',
            "I'm sorry, but I couldn't find any specific information about the page speed.",
            0.0,
        ),
        ('{"error": "", "response": "answer"}', "", 1.0),  # the name of the field is a part of the arguments
        ('{"error": "Timeout", "response": "xyzw"}', "xyzw", 1.0),  # no gate for failures
        ("qqqq", "q", 0.25),
        ("", "x", 0.0),
    ],
)
def test_lcs_is_the_released_rule(observation, answer, share, make_query, make_step, make_trajectory):
    trajectory = make_trajectory([make_step("f", observation)], answer)
    first = PublishedRules().annotate(make_query(), trajectory)[0]
    assert first.contribution == float(share >= 0.3)
    assert first.rationale.startswith("failed") or first.rationale == f"overlap {share:.3f}"
