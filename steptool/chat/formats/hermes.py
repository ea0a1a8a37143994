"""Hermes, Qwen 2.5 and Qwen 3: a JSON object between <tool_call> tags."""

from __future__ import annotations

from steptool.chat.calls import read_call, read_first_json, write_json
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


def _write(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "arguments": dict(call.arguments)}, HERMES.marks)
    text = f"{CALL_OPEN}{body}{CALL_CLOSE}"
    return f"{thought}\n{text}" if thought else text


def _read(text: str, start: int) -> tuple[int, ToolCall]:
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
    _write,
    _read,
)
