import json

import numpy as np
import pytest

from steptool.config import Config
from steptool.environments.base import ToolResult, open_environment
from steptool.environments.replay import ReplayEnvironment
from steptool.records import Query, Step, StepStatus, StopReason, ToolCall, Trajectory

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather_for_sky",
        "description": "Weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}, "day": {"type": "number"}},
            "required": ["town"],
        },
    },
}
QUERY = Query("q", "train", "replay", "Will it rain?", (WEATHER,))


def make_recording(*steps):
    return Trajectory(
        "t", "q", "replay", "", "recorded", -1, 0, 1.0, [], np.zeros(0, np.int32), [], np.zeros(0, np.float32),
        list(steps), StopReason.FINISHED, None, None, 0.0,
    )  # fmt: skip


def step(observation, status=StepStatus.OK, name="weather_for_sky", **arguments):
    return Step(ToolCall(name, arguments), status, observation)


def call(environment, name="weather_for_sky", **arguments):
    return environment.reset(QUERY).call(ToolCall(name, arguments))


def test_a_recorded_call_gets_its_response_whatever_the_order_of_its_arguments():
    dirty = '{"error": "", "response": "rain \\u2614 \n\x01 {\'a\': None}"}'
    environment = ReplayEnvironment([make_recording(step(dirty, town="Bern", day=1))])
    assert call(environment, day=1, town="Bern") == ToolResult(StepStatus.OK, dirty)


def test_a_recorded_failure_stays_a_failure():
    environment = ReplayEnvironment([make_recording(step("late", StepStatus.TOOL_ERROR, town="Bern"))])
    assert call(environment, town="Bern") == ToolResult(StepStatus.TOOL_ERROR, "late")


def test_a_call_never_recorded_gets_the_protocols_error():
    result = call(ReplayEnvironment([make_recording(step("dry", town="Bern"))]), town="Basel")
    assert result.status is StepStatus.TOOL_ERROR
    document = json.loads(result.observation)
    assert set(document) == {"error", "response"} and document["error"] and document["response"] == ""


def test_an_unknown_tool_and_wrong_arguments_are_told_apart():
    environment = ReplayEnvironment([])
    unknown = call(environment, name="tides_for_sea")
    assert unknown.status is StepStatus.UNKNOWN_TOOL
    assert json.loads(unknown.observation)["error"] == "No such function name: tides_for_sea"
    wrong = call(environment, town=3)
    assert wrong.status is StepStatus.INVALID_ARGUMENTS and "'town' must be string" in wrong.observation


def test_what_was_recorded_stands_even_against_the_schema():
    environment = ReplayEnvironment([make_recording(step("dry", town="Bern", day="tomorrow"))])
    assert call(environment, town="Bern", day="tomorrow") == ToolResult(StepStatus.OK, "dry")


def test_the_most_frequent_response_wins_and_of_equals_the_first():
    answers = [step(o, town="Bern") for o in ("dry", "wet", "wet")]
    assert call(ReplayEnvironment([make_recording(*answers)]), town="Bern").observation == "wet"
    tied = [step(o, town="Bern") for o in ("dry", "wet", "wet", "dry")]
    assert call(ReplayEnvironment([make_recording(*tied)]), town="Bern").observation == "dry"
    assert call(ReplayEnvironment([make_recording(*tied[1:])]), town="Bern").observation == "wet"
    assert call(ReplayEnvironment([make_recording(tied[1]), make_recording(tied[0])]), town="Bern").observation == "wet"


@pytest.mark.parametrize("status", [StepStatus.UNKNOWN_TOOL, StepStatus.INVALID_ARGUMENTS, StepStatus.FINISH])
def test_only_what_a_tool_said_is_replayed(status):
    environment = ReplayEnvironment(
        [make_recording(step("nonsense", status, town="Bern"), Step(None, status, "nonsense"))]
    )
    assert "nonsense" not in call(environment, town="Bern").observation


def test_sessions_share_no_state_and_give_no_verdict():
    environment = open_environment("replay", Config(), [make_recording(step("dry", town="Bern"))])
    session = environment.reset(QUERY)
    assert session.call(ToolCall("weather_for_sky", {"town": "Bern"})).observation == "dry"
    assert session.call(ToolCall("weather_for_sky", {"town": "Bern"})).observation == "dry"
    assert session.solved("dry") is None and session.solved(None) is None
