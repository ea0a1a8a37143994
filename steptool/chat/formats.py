"""Tool calls as text: Hermes' <tool_call> form and Llama 3.1's bare JSON object."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from steptool.trajectory import ToolCall

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"


@dataclass(frozen=True)
class ParsedTurn:
    """What an assistant turn says: its call, or why there is none."""

    call: ToolCall | None
    text: str
    """The whole turn without its end-of-turn token."""
    problem: str = ""
    """Why no call could be read, in few words for the model; empty when there is a call."""

    @property
    def thought(self) -> str:
        """Text before the call."""
        return self.text.partition(CALL_OPEN)[0].strip() if self.call and CALL_OPEN in self.text else ""


def render(call: ToolCall, thought: str = "") -> str:
    """A call in Hermes' form, after an optional thought."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{thought}{CALL_OPEN}{body}{CALL_CLOSE}"


def parse_hermes(text: str) -> ParsedTurn:
    """Read the one call of a turn. Any text is accepted: what cannot be read comes back with its problem, never raised.

    Text may come before the call but not after it. A turn that is one JSON object with "name" and "parameters" (or
    "arguments") is read as a call too.
    """
    try:
        return ParsedTurn(_call(json.loads(_body(text), parse_constant=_no_constant)), text)
    except json.JSONDecodeError as error:
        return ParsedTurn(None, text, f"invalid JSON: {error.msg}")
    except RecursionError:
        return ParsedTurn(None, text, "invalid JSON: nested too deeply")
    except ValueError as error:
        return ParsedTurn(None, text, str(error))


def _body(text: str) -> str:
    opened, closed = text.count(CALL_OPEN), text.count(CALL_CLOSE)
    if not opened and not closed:
        if text.lstrip().startswith("{"):
            return text
        raise ValueError("no tool call")
    if opened > 1 or closed > 1:
        raise ValueError("more than one tool call")
    if not opened or not closed or text.index(CALL_CLOSE) < text.index(CALL_OPEN):
        raise ValueError("tool call not closed")
    body, _, rest = text.partition(CALL_OPEN)[2].partition(CALL_CLOSE)
    if rest.strip():
        raise ValueError("text after the tool call")
    return body


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise ValueError("tool call is not an object")
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or not name:
        raise ValueError("tool call without name")
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")
    # Numbers beyond a float and halves of surrogate pairs can be read but not written again.
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise ValueError("invalid JSON: a value out of range") from None
    return ToolCall(name, arguments)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"invalid JSON: {name}")
