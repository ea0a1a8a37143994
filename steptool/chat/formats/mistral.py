"""Mistral: [TOOL_CALLS] and a JSON list of one call; newer models write a name, [ARGS] and a JSON object."""

from __future__ import annotations

import re

from steptool.chat.calls import read_call, read_json, write_json
from steptool.chat.formats.base import RESPONSE, ChatFormat, Format, refuse_response
from steptool.records import ToolCall

_CALLS, _ARGUMENTS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\][^\s\[]*)?\s*\[ARGS\](.*)", re.DOTALL)


def _write(call: ToolCall, thought: str) -> str:
    body = write_json([{"name": call.name, "arguments": dict(call.arguments)}], MISTRAL.marks)
    return f"{thought}{_CALLS} {body}"


def _read(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(_CALLS, start)
    if begin < 0:
        raise ValueError("no tool call")
    refuse_response(text[start:begin])
    body = text[begin + len(_CALLS) :]
    if _CALLS in body:
        raise ValueError("more than one tool call")
    named = _NAMED.fullmatch(body)
    if named:
        return begin, read_call({"name": named[1], "arguments": read_json(named[2])})
    calls = read_json(body)
    if not isinstance(calls, list) or not calls:
        raise ValueError("tool calls are not a list")
    if len(calls) > 1:
        raise ValueError("more than one tool call")
    call = calls[0]
    return begin, read_call({k: v for k, v in call.items() if k != "id"} if isinstance(call, dict) else call)


MISTRAL = Format(
    ChatFormat.MISTRAL,
    f'{_CALLS} [{{"name": <name of the tool>, "arguments": <object>}}]',
    RESPONSE,
    (_CALLS, _ARGUMENTS, _CALL_ID),
    _write,
    _read,
)
