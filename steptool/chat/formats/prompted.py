"""Formats that a prompt can teach any model: Hermes, which Qwen 2.5 and Qwen 3 also write, and ReAct."""

from __future__ import annotations

import re

from steptool.chat.calls import read_call, read_first_json, read_json, write_json
from steptool.chat.formats.base import (
    CALL_CLOSE,
    CALL_OPEN,
    RESPONSE,
    ChatFormat,
    Format,
    read_bare_object,
    refuse_response,
)
from steptool.records import ToolCall


def _write_hermes(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "arguments": dict(call.arguments)}, HERMES.marks)
    text = f"{CALL_OPEN}{body}{CALL_CLOSE}"
    return f"{thought}\n{text}" if thought else text


def _read_hermes(text: str, start: int) -> tuple[int, ToolCall]:
    """The call between the tags. JSON strings may hold the tags; the first value after the opening one is the call."""
    begin = text.find(CALL_OPEN, start)
    if begin < 0 and CALL_CLOSE not in text[start:]:
        return read_bare_object(text, start)
    if begin < 0 or CALL_CLOSE not in text[begin:]:
        raise ValueError("tool call not closed")
    refuse_response(text[start:begin])
    body = text[begin + len(CALL_OPEN) :].lstrip()
    value, end = read_first_json(body)
    rest = body[end:].lstrip()
    if not rest.startswith(CALL_CLOSE):
        raise ValueError("tool call not closed")
    if CALL_OPEN in rest:
        raise ValueError("more than one tool call")
    if rest.removeprefix(CALL_CLOSE).strip():
        raise ValueError("text after the tool call")
    return begin, read_call(value)


HERMES = Format(
    ChatFormat.HERMES,
    '<tool_call>{"name": <name of the tool>, "arguments": <object>}</tool_call>',
    RESPONSE,
    (CALL_OPEN, CALL_CLOSE),
    _write_hermes,
    _read_hermes,
)


_KEYWORDS = "Action Input|Action|Observation"
_KEYWORD = re.compile(rf"(?:\A\s*|^)({_KEYWORDS}):", re.MULTILINE)
_ACTION = re.compile(r"Action:([^\n]*)\n(?:\s*\n)?Action Input:(.*)", re.DOTALL)
_TO_QUOTE = re.compile(rf"^(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)
_QUOTED = re.compile(rf"^\\(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)


def _write_react(call: ToolCall, thought: str) -> str:
    opening = "Thought: " + _TO_QUOTE.sub(r"\\", thought) + "\n" if thought else ""
    return f"{opening}Action: {call.name}\nAction Input: {write_json(dict(call.arguments))}"


def _read_react(text: str, start: int) -> tuple[int, ToolCall]:
    """Keywords count at the beginning of a line, and of the turn. The input is one JSON object up to the turn's end."""
    keyword = _KEYWORD.search(text, start)
    if not keyword:
        raise ValueError("no tool call")
    if keyword[1] != "Action":
        raise ValueError(f"'{keyword[1]}:' before 'Action:'")
    action = _ACTION.fullmatch(text, keyword.start(1))
    if not action:
        raise ValueError("'Action:' without 'Action Input:' in the next line")
    return keyword.start(1), read_call({"name": action[1].strip(), "arguments": read_json(action[2])})


def _read_thought(text: str) -> str:
    return _QUOTED.sub("", text.removeprefix("Thought:").strip())


REACT = Format(
    ChatFormat.REACT,
    "Thought: <what you know and what to do next>\nAction: <name of the tool>\nAction Input: <object>",
    ("Observation: ", ""),
    (),
    _write_react,
    _read_react,
    _read_thought,
)
