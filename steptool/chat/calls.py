"""One call as JSON, read strictly: what is read can always be written again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from steptool.records import ToolCall

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
