import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.toolbench import (
    is_from_server,
    list_endpoints,
    make_endpoint,
    make_function_name,
    read_status,
)
from steptool.records import Query, Reference, StepStatus


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
    assert read_status(observation) == StepStatus(status)


@given(st.text())
def test_any_response_has_a_status(observation):
    assert read_status(observation) in StepStatus


@pytest.mark.parametrize(
    ("observation", "expected"),
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
def test_what_was_said_in_place_of_a_server_is_told_apart(observation, expected):
    assert is_from_server(observation) is expected


@pytest.mark.parametrize(
    ("api", "tool", "name", "sent"),
    [
        ("Forecast/Day", "Sky Watch", "forecast_day_for_sky_watch", ("sky_watch", "forecast_day")),
        ("/v2/{id}/", "--Tides--", "v2_id_for_tides", ("tides", "v2_id")),
        ("7 days", "24h", "get_7_days_for_get_24h", ("get_24h", "get_7_days")),
        ("from", "Trains", "is_from_for_trains", ("trains", "is_from")),
        ("Météo 👋", "été", "m_t_o_for_t", ("t", "m_t_o")),
        ("天气 now", "X", "___now_for_x", ("x", "天气_now")),
        ("a" * 80, "sky", "a" * 56 + "_for_sky", ("sky", "a" * 80)),
    ],
)
def test_names_follow_toolbench(api, tool, name, sent):
    assert make_function_name(api, tool) == name
    assert make_endpoint("Video, Images", tool, api) == ("Video, Images", *sent)


@given(st.text(), st.text())
def test_what_is_sent_has_the_same_function_name_and_is_its_own_standard_form(tool, api):
    endpoint = make_endpoint("Weather", tool, api)
    assert make_endpoint(*endpoint) == endpoint
    name = make_function_name(endpoint[2], endpoint[1])
    assert name == make_function_name(api, tool) and re.fullmatch("[a-z0-9_]{5,64}", name)


def test_a_query_leads_back_from_its_functions(query):
    assert list_endpoints(query) == {"forecast_for_sky_watch": ("Weather", "sky_watch", "forecast")}
    assert list_endpoints(Query("q", "train", "replay", "go", ())) == {}


@pytest.mark.parametrize("parts", [["Weather", "sky_watch"], "Weather", ["Weather", "sky_watch", 3], None])
def test_a_reference_of_another_form_is_refused_with_its_place(parts):
    with pytest.raises(ValueError, match=r"query q: reference\.toolbench\.f: expected \[category"):
        list_endpoints(Query("q", "train", "toolbench", "go", (), Reference(environment={"toolbench": {"f": parts}})))
