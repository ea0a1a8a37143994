"""One call of each tool, in an environment that notes them."""

import time
from typing import Any

import pytest

from steptool.chat.messages import FINISH_SCHEMA, annotate_tool
from steptool.check.plan import CalledTools, try_tools
from steptool.config import ConfigError, ToolsConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.records import Query, Reference, Step, StepStatus, ToolCall, Trajectory


class NotedSession(Session):
    def __init__(self, made: list[ToolCall]) -> None:
        self._made = made

    def call(self, call: ToolCall) -> ToolResult:
        self._made.append(call)
        failed = call.name == "broken"
        return ToolResult(StepStatus.TOOL_ERROR if failed else StepStatus.OK, "no paper" if failed else "done")


class NotedEnvironment(Environment):
    name = "noted"

    def __init__(self) -> None:
        self.made: list[ToolCall] = []

    def reset(self, query: Query) -> NotedSession:
        return NotedSession(self.made)


def tool(name: str, *required: str, read_only: bool | None = True) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": "string"} for key in required},
        "required": [*required],
    }
    function = {"name": name, "description": "", "parameters": parameters}
    return annotate_tool({"type": "function", "function": function}, read_only)


def query(*calls: ToolCall, tools: tuple[dict[str, Any], ...]) -> Query:
    return Query("q", "train", "noted", "go", (*tools, FINISH_SCHEMA), Reference(calls=calls))


READ, LATER = ToolCall("read", {"key": "a"}), ToolCall("read", {"key": "b"})
TOOLS = (tool("read", "key"), tool("clock"), tool("unknown", "key"), tool("write", read_only=None))


class SlowlyClosedEnvironment(NotedEnvironment):
    def reset(self, query: Query) -> NotedSession:
        session = super().reset(query)
        session.close = lambda: time.sleep(0.3)  # type: ignore[method-assign]
        return session


def test_the_time_of_a_call_does_not_include_the_end_of_its_session() -> None:
    trial = try_tools(SlowlyClosedEnvironment(), [query(READ, tools=TOOLS[:1])], [], ToolsConfig())
    assert 0 <= trial.seconds["read"] < 0.3


def test_tools_that_only_read_get_one_call_with_arguments_of_a_solution() -> None:
    environment = NotedEnvironment()
    trial = try_tools(environment, [query(READ, LATER, tools=TOOLS)], [], ToolsConfig())
    assert environment.made == [READ, ToolCall("clock", {})]
    assert list(trial.seconds) == ["read", "clock"] and trial.mean_seconds >= 0 and not trial.failures
    first, *others = trial.describe()
    assert first.startswith("2 of 4 tools answered a call, ")
    assert others == [
        "not called, since no task or demonstration shows their arguments: unknown",
        "not called, since they do not say that they only read: write",
    ]


def test_all_tools_are_called_where_one_asks_for_it() -> None:
    environment = NotedEnvironment()
    trial = try_tools(environment, [query(READ, tools=TOOLS)], [], ToolsConfig(), CalledTools.ALL)
    assert {call.name for call in environment.made} == {"read", "clock", "write"}
    assert list(trial.left_out) == ["unknown"]


def test_a_demonstration_shows_arguments_and_its_first_call_comes_first() -> None:
    steps = [Step(ToolCall("clock", {}), StepStatus.OK, "9"), Step(READ, StepStatus.OK, "7")]
    task = Query("q", "train", "noted", "go", TOOLS)
    shown = Trajectory("t", "q", "noted", "", "p", -1, 0, 1.0, [], [], [], [], steps, "finished", None, None, 0.0)  # type: ignore[arg-type]
    environment = NotedEnvironment()
    try_tools(environment, [task, query(LATER, tools=TOOLS)], [shown], ToolsConfig())
    assert environment.made == [LATER, ToolCall("clock", {})]


def test_a_tool_that_fails_is_named_and_no_answer_at_all_is_an_error() -> None:
    tools = (tool("broken"), tool("clock"))
    trial = try_tools(NotedEnvironment(), [query(tools=tools)], [], ToolsConfig())
    assert trial.failures == {"broken": "tool_error: no paper"} and list(trial.seconds) == ["clock"]
    with pytest.raises(ConfigError, match="no tool answers: broken failed with tool_error: no paper"):
        try_tools(NotedEnvironment(), [query(tools=tools[:1])], [], ToolsConfig())


def test_no_call_is_made_where_none_is_wanted() -> None:
    environment = NotedEnvironment()
    trial = try_tools(environment, [query(READ, tools=TOOLS)], [], ToolsConfig(), CalledTools.NONE)
    assert environment.made == [] and next(iter(trial.describe())) == "0 of 4 tools answered a call"
