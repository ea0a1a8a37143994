"""Arguments arrive as what the type hints say, or the hints are refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from steptool.config.base import ConfigError
from steptool.environments.functions.environment import FunctionsEnvironment
from steptool.records import Query, StepStatus, ToolCall

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


def opened(module: Callable[..., str], hint: str) -> FunctionsEnvironment:
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
    session = opened(module, hint).reset(Query("q", "train", "functions", "go", ()))
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
    session = opened(module, hint).reset(Query("q", "train", "functions", "go", ()))
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
        opened(module, hint)


def test_a_schema_stands_alone_and_has_no_titles(module: Callable[..., str]) -> None:
    (tool,) = opened(module, "Size").tools()
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
