import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.toolbench.protocol import from_server, observation_status
from steptool.records import StepStatus


@pytest.mark.parametrize(
    ("observation", "status"),
    [
        ('{"error": "", "response": "9 mm"}', "ok"),
        ('{"error": "", "response": ""}', "ok"),
        ('{"error": "", "response": {"results": []}}', "ok"),
        ('{"error": "Timeout error...", "response": ""}', "tool_error"),
        ('{"error": {"code": 3}, "response": ""}', "tool_error"),
        ('{"error": "No such function name: tides", "response": ""}', "unknown_tool"),
        ('{"error": "", "response": "{\\"status\\": \\"401\\"}"}', "tool_error"),
        ('{"error": "", "response": "{\'statusCode\': 503}"}', "tool_error"),
        ('{"error": "", "response": {"status": 404}}', "tool_error"),
        ('{"error": "", "response": "{\'status\': 200, \'temperature\': 451}"}', "ok"),
        ('{"error": "", "response": "Too many requests"}', "tool_error"),
        ('{"error": "", "response": "A novel of 900 pages about too many requests. ' + "x" * 900 + '"}', "ok"),
        ('{"error": "", "response": "cut off in the mid', "ok"),
        ('{"error": "Message error...", "response": "cut off in the mid', "tool_error"),
        ('{"error": "Tool input parse error...\\n", "response": ""}', "invalid_arguments"),
        ("plain words", "ok"),
        ("[1, 2]", "ok"),
        ("", "ok"),
    ],
)
def test_what_became_of_a_call_is_read_from_the_response(observation, status):
    assert observation_status(observation) == StepStatus(status)


@given(st.text())
def test_any_response_has_a_status(observation):
    assert observation_status(observation) in StepStatus


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        ('{"error": "", "response": "9 mm"}', True),
        ('{"error": "Message error...", "response": "cut off in the mid', True),
        ('{"error": "Timeout error...HTTPConnectionPool: Read timed out.", "response": ""}', True),
        ("plain words", True),
        ("[1, 2]", True),
        ('{"error": "no answer within 30 s"}', False),
        ('{"error": "Timeout error...", "response": ""}', False),
        ('{"error": "request invalid, data error. status_code=500", "response": ""}', False),
        ('{"error": "No response is recorded for this call.", "response": ""}', False),
    ],
)
def test_what_was_said_in_place_of_a_server_is_told_apart(observation, said):
    assert from_server(observation) is said
