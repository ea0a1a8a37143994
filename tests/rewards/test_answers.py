import pytest

from steptool.records import Reference, StopReason
from steptool.rewards.observations import is_solved, matches_reference


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
