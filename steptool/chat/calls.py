"""Calls and tools: one call as JSON, read strictly; the call that ends an episode; and whether a tool only reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from steptool.records import FINISH, ToolCall, ToolSchema

DEEPEST = 100
"""Levels of objects and lists in a value: what is nested deeper can be read, but not written everywhere."""
_FIELDS = {"name", "arguments", "parameters", "type"}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"invalid JSON: {name}")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def read_json(text: str) -> Any:
    """The one JSON value of a text; of equal keys the last counts. Raises ValueError in few words for the model."""
    text = text.strip()
    value, end = read_first_json(text)
    if end < len(text):
        raise ValueError("invalid JSON: Extra data")
    return value


def read_first_json(text: str) -> tuple[Any, int]:
    """The JSON value that a text begins with, and where it ends. Raises ValueError in few words for the model."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("invalid JSON: nested too deeply") from None
    if text.count("[", 0, end) + text.count("{", 0, end) > DEEPEST and nesting(value) > DEEPEST:
        raise ValueError("invalid JSON: nested too deeply")
    return value, end


def nesting(value: Any) -> int:
    """Levels of objects and lists in a value."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [item for inner in level for item in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def write_json(value: Any, marks: Sequence[str] = ()) -> str:
    """A value as JSON without any of the `marks`: within strings, the first character of a mark is escaped.

    Raises ValueError where JSON has no word for the value.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON value: {error}") from None
    for mark in marks:
        text = text.replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")
    return text


def read_call(value: Any) -> ToolCall:
    """The call that a JSON object with "name" and "arguments" (or "parameters") makes. A "type" may say "function".

    Raises ValueError in few words for the model where it is no such object, or holds other fields.
    """
    if not isinstance(value, Mapping):
        raise ValueError("tool call is not an object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("tool call without name")
    if value.keys() - _FIELDS or value.get("type", "function") != "function":
        raise ValueError("tool call with fields besides name and arguments")
    if "arguments" in value and "parameters" in value:
        raise ValueError("tool call with arguments and parameters")
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(arguments, Mapping):
        raise ValueError("arguments are not an object")
    # Numbers beyond a float and halves of surrogate pairs can be read but not written again.
    try:
        write_json([name, dict(arguments)]).encode()
    except ValueError:
        raise ValueError("invalid JSON: a value out of range") from None
    return ToolCall(name, dict(arguments))


GIVE_ANSWER = "give_answer"
GIVE_UP = "give_up_and_restart"

FINISH_SCHEMA: ToolSchema = {
    "type": "function",
    "function": {
        "name": FINISH,
        "description": "End the task: give the final answer, or give up. Call it exactly once, as the last step.",
        "parameters": {
            "type": "object",
            "properties": {
                "return_type": {"type": "string", "enum": [GIVE_ANSWER, GIVE_UP]},
                "final_answer": {"type": "string", "description": "The answer that the user will see"},
            },
            "required": ["return_type"],
        },
    },
}


ANNOTATIONS = "annotations"
"""Field of a schema's "function" with MCP's hints, such as {"readOnlyHint": true}. Models do not see it."""
READ_ONLY_HINT = "readOnlyHint"
READ_ONLY_FIELD = "x-read-only"
"""Field of a schema's "function" that says the same where a task lists its tools itself."""


def reads_only(tool: ToolSchema) -> bool | None:
    """Whether a call of the tool changes nothing; None where its schema does not say."""
    function = tool["function"]
    annotations = function.get(ANNOTATIONS)
    hint = annotations.get(READ_ONLY_HINT) if isinstance(annotations, dict) else None
    hint = function.get(READ_ONLY_FIELD, hint)
    return hint if isinstance(hint, bool) else None


def annotate_tool(tool: ToolSchema, read_only: bool | None) -> ToolSchema:
    """The schema with a hint whether the tool only reads; the schema as it is for None."""
    if read_only is None:
        return tool
    return {**tool, "function": {**tool["function"], ANNOTATIONS: {READ_ONLY_HINT: read_only}}}


def model_schemas(tools: Iterable[ToolSchema]) -> list[ToolSchema]:
    """The schemas as a model sees them: without hints, which would cost tokens and which some endpoints refuse."""
    return [_without_hints(tool) for tool in tools]


def _without_hints(tool: ToolSchema) -> ToolSchema:
    function = tool["function"]
    if ANNOTATIONS not in function and READ_ONLY_FIELD not in function:
        return tool
    fields = {key: value for key, value in function.items() if key not in (ANNOTATIONS, READ_ONLY_FIELD)}
    return {**tool, "function": fields}
