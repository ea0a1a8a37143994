import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.chat.tools import annotate_tool
from steptool.environments.desk.expert import Expert
from steptool.environments.desk.tasks import TIERS, draw_query
from steptool.records import Reference, Step, StepStatus, StopReason
from steptool.rewards.annotators import annotate, make_annotator
from steptool.rewards.answers import is_solved, matches_reference
from steptool.rewards.rules import DataFlowRules, OverlapRules, PublishedRules, overlap


def contributions(query, trajectory, rules=None):
    return [score.contribution for score in (rules or DataFlowRules()).annotate(query, trajectory)]


def test_values_that_reach_the_answer_through_later_calls_count(make_query, make_step, make_trajectory):
    trajectory = make_trajectory(
        [
            make_step("find_user", {"user_id": "usr_03"}, name="mira chen"),
            make_step("get_weather", {"temperature": 17}, city="oslo"),
            make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03"),
            make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07"),
        ],
        answer="Done: ref_12.",
    )
    assert contributions(make_query(), trajectory) == [1, 0, 1, 1, None]


EMAIL = [{"email_id": "00000479", "subject": "Update on Expo"}]


@pytest.fixture
def mail(make_step):
    """Looks up an email and deletes it."""
    return [
        make_step("search", EMAIL, query="nadia"),
        make_step("delete", "Email deleted successfully.", email_id="00000479"),
    ]


def test_a_change_that_was_asked_for_is_paid_with_the_look_that_it_needed(mail, make_query, make_trajectory):
    query = make_query(instruction="Delete my last email from nadia.")
    answer = "I have deleted the last email from Nadia."
    assert contributions(query, make_trajectory(mail, answer)) == [1, 1, None]
    assert contributions(query, make_trajectory([*mail, mail[1]], answer)) == [1, 1, 0, None]  # a repeat
    assert contributions(query, make_trajectory(mail)) == [0, 0]  # nothing was answered
    gave_up = make_trajectory(mail, stop_reason=StopReason.GAVE_UP)
    assert contributions(query, gave_up) == [0, 0]


def test_a_change_made_without_looking_is_not_paid_though_the_answer_quotes_it(
    mail, make_query, make_step, make_trajectory
):
    query = make_query(instruction="Cancel the last order of mira chen.")
    blind = make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07")
    assert contributions(query, make_trajectory([blind], "ref_12")) == [0, None]
    found = make_step("last_order", {"order_id": "ord_07"}, user="mira chen")
    assert contributions(query, make_trajectory([blind, found], "ref_12")) == [0, 0, None]  # looked up too late
    assert contributions(query, make_trajectory([found, blind], "ref_12")) == [1, 1, None]
    named = make_query(instruction="Cancel order ord_07.")
    assert contributions(named, make_trajectory([blind], "done")) == [1, None]
    failed = make_step("cancel_order", {"error": "already shipped"}, order_id="ord_07")
    assert contributions(named, make_trajectory([failed], "done")) == [0, None]


def test_what_the_user_says_later_and_what_a_change_returned_is_known(make_query, make_step, make_trajectory):
    steps = [
        make_step("create_ticket", {"ticket_id": "tck_31"}, title="No heating"),
        make_step("assign_ticket", {"assigned": True}, ticket_id="tck_31", email="ana@example.com"),
    ]
    turns = [{"role": "user", "content": text} for text in ("Open a ticket.", "Give it to ana@example.com.")]
    query = make_query(instruction="Open a ticket.")
    assert contributions(query, make_trajectory(steps, "done", messages=turns)) == [1, 1, None]
    assert contributions(query, make_trajectory(steps, "done", messages=turns[:1])) == [1, 0, None]


def test_the_schema_says_which_tools_change_something(make_query, make_step, make_trajectory):
    def tool(name, reads):
        return annotate_tool({"type": "function", "function": {"name": name, "parameters": {}}}, reads)

    steps = [make_step("count", 3, item="spoon"), make_step("ready", "ok", item="spoon")]
    query = make_query(instruction="Get the spoons ready.", tools=(tool("count", True), tool("ready", False)))
    assert contributions(query, make_trajectory(steps, "done")) == [1, 1, None]  # looked at before acting
    assert contributions(make_query(), make_trajectory(steps, "done")) == [0, 0, None]


def test_a_chain_that_leads_nowhere_contributes_nothing(make_query, make_step, make_trajectory):
    trajectory = make_trajectory(
        [
            make_step("find_user", {"user_id": "usr_03"}, name="mira chen"),
            make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03"),
        ],
        answer="done",
    )
    assert contributions(make_query(), trajectory) == [0, 0, None]


def test_looking_at_a_thing_before_acting_on_it_counts_once(make_query, make_step, make_trajectory):
    look = make_step("get_order", {"status": "pending", "total": 81}, order_id="ord_07")
    act = make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07")
    assert contributions(make_query(), make_trajectory([look, look, act], "ref_12")) == [1, 0, 1, None]
    assert contributions(make_query(), make_trajectory([act, look], "ref_12")) == [0, 0, None]
    elsewhere = make_step("get_order", {"status": "pending", "total": 81}, order_id="ord_08")
    assert contributions(make_query(), make_trajectory([elsewhere, act], "ref_12")) == [0, 0, None]


def test_what_was_known_before_is_no_contribution(make_query, make_step, make_trajectory):
    query = make_query(instruction="what does product pro_05 cost in oslo?")
    echo = make_step("get_product", {"product_id": "pro_05", "city": "Oslo"}, product_id="pro_05")
    again = make_step("find_price", {"price": 40}, product_id="pro_05")
    repeated_value = make_step("list_price", {"price": 40}, item="pro_05", verbose=True)
    trajectory = make_trajectory([echo, again, repeated_value], "pro_05 costs 40 in oslo")
    assert contributions(query, trajectory) == [0, 1, 0, None]


def test_the_same_word_about_another_thing_is_news(make_query, make_step, make_trajectory):
    one, other = (make_step("get_order", {"status": "pending"}, order_id=f"ord_0{n}") for n in (1, 2))
    ticket = make_step("get_ticket", {"user_id": "usr_20", "severity": "major"}, ticket_id="tck_04")
    event = make_step("get_event", {"host_id": "usr_20"}, event_id="evt_08")
    last = make_step("last_order", {"order_id": "ord_09"}, user_id="usr_20")
    assert contributions(make_query(), make_trajectory([one, other], "pending; pending")) == [1, 1, None]
    assert contributions(make_query(), make_trajectory([ticket, event, last], "ord_09")) == [1, 1, 1, None]


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
def test_the_published_rules_take_any_text(observation, answer):
    from steptool.records import Query, ToolCall, Trajectory

    step = Step(ToolCall("f", {}), StepStatus.OK, '{"error": "", "response": "' + observation)
    none = np.zeros(0, dtype=np.int32)
    t = Trajectory(
        "t", "q", "e", "", "p", 0, 0, 1.0, [], none, [], none, [step], StopReason.FINISHED, answer, None, 0.0
    )
    (score,) = OverlapRules().annotate(Query("q", "train", "e", "?", ()), t)
    assert score.contribution in (0, 1) and score.succ_calling in (0, 1)


def test_failed_steps_and_repeats_contribute_nothing_but_a_retry_may(make_query, make_step, make_trajectory):
    failed = make_step("get_weather", {"error": "", "response": "{'success': False, 'temperature': 17}"}, city="oslo")
    worked = make_step("get_weather", {"temperature": 18}, city="oslo")
    changed = make_step("get_weather", {"temperature": 19}, city="oslo")
    trajectory = make_trajectory([failed, worked, changed], "17 or 18 or 19")
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


def test_the_overlap_rule_has_its_threshold_at_three_tenths(make_query, make_step, make_trajectory):
    for answer, expected in (("abc", 1), ("ab", 0)):
        trajectory = make_trajectory([make_step("f", "abcdefghij")], answer)
        assert contributions(make_query(), trajectory, OverlapRules()) == [expected, None]


def test_the_overlap_rule_misses_short_structures_that_data_flow_sees(make_query, make_step, make_trajectory):
    trajectory = make_trajectory(
        [
            make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03"),
            make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07"),
        ],
        answer="12",
    )
    assert contributions(make_query(), trajectory, OverlapRules()) == [0, 0, None]
    assert contributions(make_query(), make_trajectory(trajectory.steps[:2], "ref_12")) == [1, 1, None]


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ({"answer": "ref_12"}, " REF_12. ", 1),
        ({"answer": "ref_12"}, "ref_13", 0),
        ({"answer": "1200.5"}, "1,200.50", 1),
        ({"answer": '{"a": 1, "b": 2}'}, '{"b": 2, "a": 1}', 1),
        ({"answer": "I'm sorry"}, "i'm sorry", 1),
        ({}, "Oslo is at 17 degrees.", 0.5),
        ({"answer": ""}, "Oslo is at 17 degrees.", 0.5),
        ({}, "   ", 0),
        ({}, "I'm sorry, but I could not find the order.", 0),
        ({}, "Unfortunately the service is down", 0),
        ({}, "We were unable to reach the service.", 0),
    ],
)
def test_is_solved_by_rule(reference, answer, verdict, make_query, make_trajectory):
    assert is_solved(make_query(reference=Reference.from_json(reference)), make_trajectory([], answer)) == verdict


@pytest.mark.parametrize("stop", [s for s in StopReason if s is not StopReason.FINISHED])
def test_only_a_finished_episode_can_be_solved(stop, make_query, make_trajectory):
    trajectory = make_trajectory([], "ref_12", stop_reason=stop)
    assert is_solved(make_query(reference=Reference(answer="ref_12")), trajectory) == 0


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


@pytest.mark.parametrize(
    ("answer", "expected", "equal"),
    [
        ("[true]", "[1]", False),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": [0]}', '{"a": [false]}', False),
        ('{"b": 2, "a": [1, "x"]}', '{"a": [1.0, "x"], "b": 2}', True),
        ("[1]", '["1"]', False),
        ("[1, 2]", "[1, 2, 3]", False),
        ('{"a": null}', "{}", False),
        ("1200.50", "1,200.5", True),
        ("The Answer.", "the answer", True),
    ],
)
def test_answers_are_equal_as_text_or_as_json_of_the_same_types(answer, expected, equal, make_query, make_trajectory):
    query = make_query(reference=Reference(answer=expected))
    assert matches_reference(query, make_trajectory([], answer)) == float(equal)


def test_without_a_reference_answer_nothing_can_match(make_query, make_trajectory):
    assert matches_reference(make_query(), make_trajectory([], "yes")) is None
    assert matches_reference(make_query(reference=Reference(answer="yes")), make_trajectory([])) == 0.0


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
