"""ReAct, as ToolBench writes it: lines of Thought, Action and Action Input."""

from __future__ import annotations

import re

from steptool.chat.calls import read_call, read_json, write_json
from steptool.chat.formats.base import ChatFormat, Format
from steptool.records import ToolCall

_KEYWORDS = "Action Input|Action|Observation"
_KEYWORD = re.compile(rf"(?:\A\s*|^)({_KEYWORDS}):", re.MULTILINE)
_ACTION = re.compile(r"Action:([^\n]*)\n(?:\s*\n)?Action Input:(.*)", re.DOTALL)
_TO_QUOTE = re.compile(rf"^(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)
_QUOTED = re.compile(rf"^\\(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)


def _write(call: ToolCall, thought: str) -> str:
    opening = "Thought: " + _TO_QUOTE.sub(r"\\", thought) + "\n" if thought else ""
    return f"{opening}Action: {call.name}\nAction Input: {write_json(dict(call.arguments))}"


def _read(text: str, start: int) -> tuple[int, ToolCall]:
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
    _write,
    _read,
    _read_thought,
)
