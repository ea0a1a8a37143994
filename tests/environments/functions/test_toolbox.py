"""Whatever a tool raises is a failed step, and whatever `solved` raises is a missing verdict."""

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import ToolResult, VerdictError
from steptool.environments.functions.environment import FunctionsEnvironment
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.records import Query, Reference, StepStatus, ToolCall

HOSTILE = '''
    import asyncio

    class Unreadable(Exception):
        def __str__(self):
            raise KeyboardInterrupt

    class Hostile:
        def __init__(self, made_by: str = "") -> None:
            if made_by:
                self.fail(made_by)
            self.opened = None

        def fail(self, kind: str) -> str:
            """Fail somehow.

            Args:
                kind: of failure
            """
            raise {
                "key": KeyboardInterrupt,
                "exit": SystemExit,
                "cancel": asyncio.CancelledError,
                "generator": GeneratorExit,
                "base": BaseException,
                "unreadable": Unreadable,
                "group": ExceptionGroup("two", [ValueError("one"), KeyError("other")]),
                "basegroup": BaseExceptionGroup("all", [KeyboardInterrupt()]),
            }[kind]

        async def fail_later(self, kind: str) -> str:
            """Fail after a while.

            Args:
                kind: of failure
            """
            await asyncio.sleep(0)
            return self.fail(kind)

        async def open(self) -> str:
            """Open what belongs to the event loop."""
            self.opened = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.01, self.opened.set_result, "opened before")
            return "open"

        async def read(self) -> str:
            """Read what was opened."""
            return await self.opened

        def awaitable(self) -> object:
            """Return something that has to be awaited."""
            class Later:
                def __await__(self):
                    yield from asyncio.sleep(0).__await__()
                    return "awaited"
            return Later()

        def next_turn(self, final_answer, reference):
            message = {"number": 7, "none": None, "text": "and then?"}
            return message[final_answer] if final_answer in message else self.fail(final_answer)

        def solved(self, final_answer, reference):
            return 1.0 if final_answer == "fine" else self.fail(final_answer)
'''
QUERY = Query("q", "train", "functions", "go", ())
KINDS = {
    "key": "KeyboardInterrupt: ",
    "exit": "SystemExit: ",
    "cancel": "CancelledError: ",
    "generator": "GeneratorExit: ",
    "base": "BaseException: ",
    "unreadable": "Unreadable, and its text cannot be read",
    "group": "ExceptionGroup: two (2 sub-exceptions): ValueError: one; KeyError: 'other'",
    "basegroup": "BaseExceptionGroup: all (1 sub-exception): KeyboardInterrupt: ",
}


@pytest.fixture
def session(module: Callable[..., str]) -> Callable[..., LimitedSession]:
    environment = FunctionsEnvironment(f"{module(HOSTILE)}:Hostile")

    def reset(**state: Any) -> LimitedSession:
        query = Query("q", "train", "functions", "go", (), Reference(environment={"state": state}))
        return LimitedEnvironment(environment, ToolsConfig(timeout=10)).reset(query)

    return reset


@pytest.mark.parametrize(("kind", "message"), KINDS.items())
def test_what_a_tool_raises_is_a_failed_step(session: Callable[..., LimitedSession], kind: str, message: str) -> None:
    playing = session()
    for tool in ("fail", "fail_later"):
        result = playing.call(ToolCall(tool, {"kind": kind}))
        assert result.status is StepStatus.TOOL_ERROR and message in result.observation
    with pytest.raises(VerdictError, match="'solved' failed: "):
        playing.solved(kind)
    assert playing.call(ToolCall("open", {})).observation == "open" and playing.solved("fine") == 1.0
    playing.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_making_of_the_object_raises_is_a_failed_step(
    session: Callable[..., LimitedSession], kind: str
) -> None:
    playing = session(made_by=kind)
    assert playing.call(ToolCall("open", {})).status is StepStatus.TOOL_ERROR
    with pytest.raises(VerdictError, match="'solved' failed: "):
        playing.solved("fine")
    playing.close()


def test_coroutines_of_an_episode_share_an_event_loop(session: Callable[..., LimitedSession]) -> None:
    playing = session()
    observations = [playing.call(ToolCall(name, {})).observation for name in ("open", "read", "awaitable")]
    assert observations == ["open", "opened before", "awaited"]
    playing.close()


def test_the_user_speaks_with_next_turn(session: Callable[..., LimitedSession]) -> None:
    playing = session()
    assert (playing.next_turn("text"), playing.next_turn("none")) == ("and then?", None)
    with pytest.raises(RuntimeError, match="'next_turn' failed: TypeError: expected a text or None, got 7"):
        playing.next_turn("number")
    with pytest.raises(RuntimeError, match="'next_turn' failed: KeyboardInterrupt"):
        playing.next_turn("key")
    assert playing.call(ToolCall("next_turn", {})).status is StepStatus.UNKNOWN_TOOL
    playing.close()


TYPED = '''
    from __future__ import annotations
    import dataclasses, datetime, decimal, enum, typing
    from typing import Annotated, Literal, Optional
    from typing_extensions import TypedDict
    from pydantic import BaseModel, Field

    class Color(enum.Enum):
        RED = "red"
        BLUE = "blue"

    @dataclasses.dataclass
    class Size:
        width: int
        color: Color = Color.RED

    class Order(BaseModel):
        items: list[Size]
        due: datetime.date

    class Place(TypedDict):
        town: str

    class Node(BaseModel):
        next: Node | None = None

    def describe(value: {hint}, more: {hint} = None) -> str:
        """Describe a value.

        Args:
            value: the value
            more: another one
        """
        return f"{{value!r}} {{more!r}}"

    class Thing: ...

    tools = [describe]
'''


def open_functions(module: Callable[..., str], hint: str) -> FunctionsEnvironment:
    return FunctionsEnvironment(f"{module(TYPED.format(hint=hint))}:tools")


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        ("Color", "red", "<Color.RED: 'red'>"),
        ("list[Color]", ["red", "blue"], "[<Color.RED: 'red'>, <Color.BLUE: 'blue'>]"),
        ("dict[str, Color]", {"a": "red"}, "{'a': <Color.RED: 'red'>}"),
        ("Optional[Color]", "blue", "<Color.BLUE: 'blue'>"),
        ("Color | None", None, "None"),
        ("Size", {"width": 2, "color": "blue"}, "Size(width=2, color=<Color.BLUE: 'blue'>)"),
        ("Size", {"width": 2}, "Size(width=2, color=<Color.RED: 'red'>)"),
        (
            "Order",
            {"items": [{"width": 1}], "due": "2026-11-27"},
            "Order(items=[Size(width=1, color=<Color.RED: 'red'>)], due=datetime.date(2026, 11, 27))",
        ),
        ("Place", {"town": "Bern"}, "{'town': 'Bern'}"),
        ("datetime.datetime", "2026-11-27T10:00:00", "datetime.datetime(2026, 11, 27, 10, 0)"),
        ("decimal.Decimal", "1.50", "Decimal('1.50')"),
        ("Literal['a', 'b']", "b", "'b'"),
        ("set[int]", [1], "{1}"),
        ("tuple[int, str]", [1, "a"], "(1, 'a')"),
        ("float", 1, "1.0"),
        ("int", 3.0, "3"),
        ("int | str", "3", "'3'"),
        ("Annotated[int, Field(ge=1)]", 1, "1"),
        ("typing.Any", {"a": [1]}, "{'a': [1]}"),
        ("dict", {"a": 1}, "{'a': 1}"),
    ],
)
def test_an_argument_arrives_as_its_hint_says(module: Callable[..., str], hint: str, value: Any, expected: str) -> None:
    session = open_functions(module, hint).reset(Query("q", "train", "functions", "go", ()))
    result = session.call(ToolCall("describe", {"value": value}))
    assert (result.status, result.observation) == (StepStatus.OK, f"{expected} None")


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        ("Color", "green", "argument 'value' must be one of"),
        ("Size", {"width": "wide"}, "argument 'value.width' must be integer"),
        ("Size", {}, "missing required argument 'width' in 'value'"),
        ("datetime.date", "yesterday", "argument 'value' is not valid: Input should be a valid date"),
        ("Order", {"items": [], "due": "soon"}, "argument 'value.due' is not valid"),
        ("Annotated[int, Field(ge=1)]", 0, "'value'"),
        ("Color", None, "'value'"),
    ],
)
def test_an_argument_that_its_hint_does_not_allow_is_a_failed_step(
    module: Callable[..., str], hint: str, value: Any, message: str
) -> None:
    session = open_functions(module, hint).reset(Query("q", "train", "functions", "go", ()))
    result = session.call(ToolCall("describe", {"value": value}))
    assert result.status is StepStatus.INVALID_ARGUMENTS and message in json.loads(result.observation)["error"]


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ("Thing", "Unable to generate pydantic-core schema for <class '.*Thing'>"),
        ("typing.Callable[[int], int]", "Cannot generate a JsonSchema"),
        ("Node", "the type Node refers to itself"),
        ("Nowhere", "name 'Nowhere' is not defined"),
    ],
)
def test_a_hint_without_a_form_in_json_is_refused_by_name(module: Callable[..., str], hint: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"tools\.functions: 'describe': .*{message}"):
        open_functions(module, hint)


def test_a_schema_stands_alone_and_has_no_titles(module: Callable[..., str]) -> None:
    (tool,) = open_functions(module, "Size").tools()
    color = {"type": "string", "enum": ["red", "blue"], "default": "red"}
    size = {"type": "object", "properties": {"width": {"type": "integer"}, "color": color}, "required": ["width"]}
    assert tool["function"] == {
        "name": "describe",
        "description": "Describe a value.",
        "parameters": {
            "type": "object",
            "properties": {"value": size | {"description": "the value"}, "more": size | {"description": "another one"}},
            "required": ["value"],
        },
    }


ENDING = '''
    import asyncio
    from steptool.environments.functions import EpisodeEnd

    class Quiz:
        def __init__(self) -> None:
            self.asked = 0

        async def ask(self, seconds: float) -> str:
            """Ask, and wait for an answer.

            Args:
                seconds: to wait
            """
            self.asked += 1
            await asyncio.sleep(seconds)
            return f"question {self.asked}"

        def stop(self) -> str:
            """Stop the quiz."""
            raise EpisodeEnd(f"{self.asked} questions were asked")

        async def stop_in_a_group(self) -> str:
            """Stop the quiz from a task."""
            async def stop():
                self.stop()

            async with asyncio.TaskGroup() as group:
                group.create_task(stop())

        async def solved(self, final_answer, reference):
            await asyncio.sleep(60)
'''


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_tool_ends_the_episode_by_an_exception(module: Callable[..., str], isolation: Any) -> None:
    environment = FunctionsEnvironment(f"{module(ENDING)}:Quiz", isolation, timeout=60)
    with closing(LimitedEnvironment(environment, ToolsConfig()).reset(QUERY)) as session:
        assert session.call(ToolCall("ask", {"seconds": 0})).observation == "question 1"
        ends = [session.call(ToolCall(name, {})) for name in ("stop", "stop_in_a_group")]
    assert ends == [ToolResult(StepStatus.OK, "1 questions were asked", ends_episode=True)] * 2


def test_a_coroutine_that_takes_too_long_is_cancelled_and_the_object_stays(module: Callable[..., str]) -> None:
    environment = FunctionsEnvironment(f"{module(ENDING)}:Quiz", timeout=1.0)
    with closing(LimitedEnvironment(environment, ToolsConfig(timeout=1.0)).reset(QUERY)) as session:
        slow = session.call(ToolCall("ask", {"seconds": 60}))
        assert slow == ToolResult(StepStatus.TOOL_ERROR, '{"error": "no answer within 0.9 s"}')
        assert session.call(ToolCall("ask", {"seconds": 0})).observation == "question 2"
        with pytest.raises(VerdictError, match=r"'solved' failed: no answer within 0\.9 s"):
            session.solved(None)


def test_the_start_of_the_process_counts_where_the_first_coroutine_takes_too_long(module: Callable[..., str]) -> None:
    """It is cancelled before the process would be ended, so that the object stays."""
    environment = FunctionsEnvironment(f"{module(ENDING)}:Quiz", "process", timeout=10.0)
    with closing(environment.reset(QUERY)) as session:
        slow = session.call(ToolCall("ask", {"seconds": 60}))
        assert slow.status is StepStatus.TOOL_ERROR and "process" not in slow.observation
        assert session.call(ToolCall("ask", {"seconds": 0})).observation == "question 2"


COUNTER = '''
class Counter:
    """Counts, by steps of its choice."""

    count: int = 0

    def add(self, by: int) -> int:
        """Add to the count.

        Args:
            by: What to add.
        """
        self.count += by
        return self.count

    def state_digest(self) -> str:
        return str(self.count) if self.count < 9 else self.count
'''


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_functions_name_their_states(module: Callable[..., str], isolation: Any) -> None:
    environment = FunctionsEnvironment(f"{module(COUNTER)}:Counter", isolation, timeout=60)
    assert [tool["function"]["name"] for tool in environment.tools()] == ["add"]
    with closing(LimitedEnvironment(environment, ToolsConfig()).reset(QUERY)) as session:
        assert session.state_digest() == "0"
        for by in (3, 2):
            session.call(ToolCall("add", {"by": by}))
        assert session.state_digest() == "5"
        session.call(ToolCall("add", {"by": 4}))
        with pytest.raises(RuntimeError, match="'state_digest' failed: TypeError: expected a text or None, got 9"):
            session.state_digest()


def test_functions_without_names_of_states_have_none(session: Callable[..., LimitedSession]) -> None:
    assert session().state_digest() is None
