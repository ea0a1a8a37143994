"""Calls that tell the user something: which they are, and what they are worth."""

import pytest

from steptool.chat.messages import strip_hints
from steptool.records import StopReason
from steptool.rewards.annotators import DataFlowRules
from steptool.rewards.reports import find_reports


def schema(name, description="", **fields):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {}, **fields}}


REPORT = schema("report", "Tell the user the outcome of one request")
TOOLS = (REPORT, *(schema(name, **{"x-read-only": name.startswith("get")}) for name in ("get_order", "cancel_order")))


@pytest.fixture
def score(make_query, make_trajectory):
    """Contributions of steps under an instruction."""

    def score(instruction, steps, answer="done", **changes):
        query = make_query(instruction=instruction, tools=TOOLS)
        trajectory = make_trajectory(steps, answer, **changes)
        return [row.contribution for row in DataFlowRules().annotate(query, trajectory)]

    return score


@pytest.fixture
def look(make_step):
    return make_step("get_order", {"status": "pending", "total": 81}, order_id="ord_07")


@pytest.fixture
def cancel(make_step):
    return make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07")


@pytest.fixture
def tell(make_step):
    return lambda value: make_step("report", {"report": "received"}, value=value)


def test_what_a_report_quotes_starts_the_chain(score, make_step, look, cancel, tell):
    lookup = make_step("last_order", {"order_id": "ord_07"}, name="mira chen")
    steps = [lookup, look, cancel, tell("ref_12")]
    assert score("cancel the last order of mira chen", steps) == [1, 1, 1, 1, None]


def test_a_report_of_a_value_that_no_tool_returned_is_not_paid_nor_is_its_chain(score, look, cancel, tell):
    assert score("say what ord_07 cost", [look, tell("81")]) == [1, 1, None]
    assert score("say what ord_07 cost", [look, tell("18")]) == [0, 0, None]
    assert score("say what ord_07 cost", [tell("81"), look]) == [0, 0, None]  # told before it was known
    assert score("say what ord_07 cost", [look, tell("ord_07")]) == [0, 0, None]  # the user knew that one
    assert score("cancel ord_07", [look, cancel, tell("ref_99")]) == [0, 0, 0, None]


def test_a_report_that_repeats_another_is_not_paid(score, make_step, look, tell):
    assert score("say what ord_07 cost", [look, tell("81"), tell("81")]) == [1, 1, 0, None]
    other = make_step("get_order", {"status": "shipped", "total": 81}, order_id="ord_08")
    assert score("say what ord_07 and ord_08 cost", [look, tell("81"), other, tell("81")]) == [1, 1, 1, 1, None]


def test_the_branch_that_a_condition_excludes_is_not_paid(score, make_step, look, cancel, tell):
    text = "cancel ord_07 if it is pending, otherwise name the total of it"
    assert score(text, [look, cancel, tell("ref_12")]) == [1, 1, 1, None]
    assert score(text, [look, tell("81")]) == [0, 0, None]
    shipped = make_step("get_order", {"status": "shipped", "total": 81}, order_id="ord_07")
    assert score(text, [shipped, tell("81")]) == [1, 1, None]
    assert score(text, [shipped, cancel, tell("ref_12")]) == [0, 0, 0, None]


def test_another_value_than_the_one_that_was_named_is_not_paid(score, make_step, look, tell):
    assert score("name the total of ord_07", [look, tell("81")]) == [1, 1, None]
    assert score("name the total of ord_07", [look, tell("pending")]) == [0, 0, None]
    converted = make_step("convert", {"amount": 90}, amount=81, target="eur")
    assert score("name the total of ord_07 in eur", [look, converted, tell("90")]) == [1, 1, 1, None]  # made from it
    assert score("say how far ord_07 got", [look, tell("pending")]) == [1, 1, None]  # the words name nothing


def test_a_change_that_was_named_and_not_made_is_not_paid(score, look, cancel, tell):
    assert score("cancel ord_07", [look, tell("pending")]) == [0, 0, None]
    assert score("undo ord_07", [look, tell("pending")]) == [1, 1, None]  # no tool has this name
    assert score("cancel ord_07", [look, cancel, tell("ref_12")]) == [1, 1, 1, None]


def test_a_report_is_an_answer_though_the_episode_has_no_other(score, look, tell):
    assert score("say what ord_07 cost", [look, tell("81")], None) == [1, 1]
    assert score("say what ord_07 cost", [look, tell("18")], None, stop_reason=StopReason.STEP_LIMIT) == [0, 0]


def test_a_text_is_paid_where_all_that_it_names_was_observed_or_named_by_the_user(score, look, tell):
    assert score("say what ord_07 cost", [look, tell("The order ord_07 has cost 81 in all.")]) == [1, 1, None]
    assert score("say what ord_07 cost", [look, tell("The order ord_07 has cost 81, less 12 of discount.")]) == [
        0,
        0,
        None,
    ]
    assert score("say what ord_07 cost", [look, tell("I am looking into it right now.")]) == [0, 0, None]


@pytest.mark.parametrize(
    ("tool", "arguments", "observation", "is_report"),
    [
        (REPORT, {"value": "81"}, {"report": "received"}, True),
        (schema("notify"), {"value": "81"}, "ok", False),
        (schema("notify", "Tell the user what was done"), {"text": "81"}, "ok", True),
        (schema("final_answer"), {"answer": "81"}, "81", False),  # an echo may be a thing that was made
        (schema("final_answer"), {"answer": "81"}, "received", True),
        (schema("report", "File a report on a road"), {"text": "hole"}, {"report_id": "rep_4"}, False),
        (schema("reply", "Reply to the customer"), {"ticket_id": "tck_4", "text": "hole"}, "ok", False),
        (schema("show", "Tell the user's age"), {"name": "ana"}, "ok", False),
        (schema("notify", **{"x-reports": True}), {"value": "81"}, {"id": 4}, True),
        (schema("report", **{"x-reports": False}), {"value": "81"}, "ok", False),
    ],
)
def test_the_schema_or_words_and_effects_say_which_calls_report(
    tool, arguments, observation, is_report, make_query, make_step, make_trajectory
):
    trajectory = make_trajectory([make_step(tool["function"]["name"], observation, **arguments)], "done")
    assert find_reports(make_query(tools=(tool,)), trajectory, ["", ""]) == [is_report, False]
    assert find_reports(make_query(tools=(tool,)), trajectory, ["refused", ""]) == [False, False]


def test_models_do_not_see_the_hint():
    assert strip_hints([schema("notify", **{"x-reports": True})]) == [schema("notify")]
