import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.records import Reference, StopReason
from steptool.rewards.observations import (
    find_failure,
    find_values,
    flatten_text,
    is_solved,
    matches_reference,
    mentions,
    normalise,
    parse_observation,
    read_payload,
)


@pytest.mark.parametrize(
    "text",
    [
        '{"error": "no such order"}',
        '{"error": "Timeout error...Read timed out.", "response": ""}',
        '{"error": "", "response": "{\'success\': False, \'message\': \'Tracking information not found\'}"}',
        '{"error": "", "response": "{\\"status\\":\\"401\\",\\"msg\\":\\"Authentication required\\"}"}',
        "{\"error\": \"\", \"response\": \"{'title': 'Bad Request', 'status': 400, 'traceId': '|b1da'}\"}",
        '{"error": "", "response": {"error": {"code": 7}}}',
        '{"error": "", "response": "The input provided does not match the expected format"}',
        '{"error": "Function executing from api error... and then the text was cut o',
        '{"isError": true, "content": []}',
        '{"status": "error", "message": "quota"}',
        '{"error": "", "response": "API doesn\'t exists"}',
        '{"error": "", "response": "{\\"message\\": \\"You are not subscribed to this API.\\"}"}',
        '{"error": "", "response": "{\'message\': \'Too many requests\'}"}',
        '{"error": "", "response": {"detail": "Not Found"}}',
        '{"error": "", "response": "<html><head><title>502 Bad Gateway</title></head>"}',
        "{\"error\": \"\", \"response\": \"{'error': {'code': 400, 'message': 'cut off in the mid",
        '{"error": {"code": 400, "message": "cut off in the mid',
        "{'statusCode': 500, 'body': ''}",
        "Error: division by zero",
        "HTTP error 502",
        "Traceback (most recent call last): ...",
        "Parcel par_04 not found.",
    ],
)
def test_failures_that_hide_in_the_text_are_found(text):
    assert find_failure(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        '{"error": "", "response": ""}',
        '{"error": "", "response": "{\\"message\\": \\"Your parcel is on its way\\"}"}',
        '{"message": "Rate limit for this road: 50 km/h", "road": "A1"}',
        '{"statusCode": 200, "body": "fine"}',
        '{"error": null, "value": 3}',
        "{\"error\": \"\", \"response\": \"{'value': [{'id': 0, 'name': 'cut off in the mid",
        '{"payment_id": "pay_3", "status": "failed"}',
        '{"code": 404, "name": "Room on the fourth floor"}',
        '{"error": 0.05, "estimate": 1.7}',
        '{"meta": {"code": 200, "message": "Success"}, "data": []}',
        "The report of 1998 says that the error was not found for years, which is why " + "it matters. " * 30,
    ],
)
def test_results_are_not_taken_for_failures(text):
    assert find_failure(text) == ""


def test_json_python_notation_and_prose_are_read_for_what_they_are():
    assert parse_observation(' {"a": [1, 2.5, null]} ') == {"a": [1, 2.5, None]}
    assert parse_observation("{'a': (1, None), 'b': True}") == {"a": (1, None), "b": True}
    assert parse_observation("12 monkeys") == "12 monkeys"
    assert parse_observation("-3.5") == -3.5
    assert read_payload('{"error": "", "response": "{\'cep\': \'75094080\'}"}') == {"cep": "75094080"}
    assert read_payload('{"error": "", "response": "plain words"}') == "plain words"
    assert read_payload('{"error": "x", "other": 1}') == {"error": "x", "other": 1}


def test_values_of_structures_are_leaves_and_of_prose_what_identifies():
    assert find_values({"id": "ord_07", "n": 3, "ok": True, "none": None, "more": [{"city": "Oslo"}, "x"]}) == {
        "ord_07",
        "3",
        "oslo",
    }
    prose = "The parcel par_04 of Anna Kovacs left on 2024-05-01. It weighs 3.50 kg; mail a@b.org."
    assert find_values(prose) == {"par_04", "anna", "kovacs", "2024-05-01", "3.5", "a@b.org"}


@pytest.mark.parametrize(
    ("text", "value", "whole"),
    [
        ("refund ref_12 was made", "ref_12", True),
        ("refund ref_123 was made", "ref_12", False),
        ("it costs $12.", "12", True),
        ("it costs 12.5", "12", False),
        ("it costs 7.12", "12", False),
        ("(oslo)", "oslo", True),
        ("oslofjord", "oslo", False),
    ],
)
def test_a_value_is_mentioned_as_a_whole_or_not_at_all(text, value, whole):
    assert mentions(text, value) is whole


@given(st.text(alphabet="a1.é _-\n", max_size=9), st.text(alphabet="a1.é -", max_size=3))
def test_a_value_counts_as_the_expression_of_its_edges_says(text, value):
    whole = rf"(?<!\w)(?<!\d\.){re.escape(value)}(?!\w|\.\d)"
    assert mentions(text, value) is (re.search(whole, text) is not None)


def test_numbers_are_compared_by_what_they_say():
    assert normalise("  Total:\n1,200.50 EUR ") == "total: 1200.5 eur"
    assert normalise("3.00") == normalise("3") == "3"
    assert normalise("1.2.3") == "1.2.3"
    assert flatten_text({"a": 3.0, "b": ["X Y", None]}) == "3\nx y\nnone"


@given(st.one_of(st.text(), st.text(alphabet="{}[]()'\":,\\-+.0123456789eE \n\x00nutrflsa", max_size=60)))
def test_anything_at_all_can_be_read(text):
    assert isinstance(find_failure(text), str)
    for value in find_values(read_payload(text)):
        mentions(normalise(text), value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 50_000,
        "[" + "-" * 100_000 + "1]",
        '{"n": ' + "1" * 10_000 + "}",
        "{{}: 1}",
        '{"a": "\\ud800"}',
        "a" * 300_000,
        "1." + "0" * 300_000 + "x",
        "a_" * 150_000,
        "A " * 100_000,
    ],
)
def test_hostile_text_neither_raises_nor_takes_long(text):
    start = time.perf_counter()
    assert find_failure(text) == ""
    find_values(read_payload(text))
    normalise(text)
    assert time.perf_counter() - start < 5


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
