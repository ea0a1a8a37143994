"""Llama 3.1: a JSON object that is the whole turn, or that follows <|python_tag|>."""

from __future__ import annotations

from steptool.chat.calls import read_call, read_json, write_json
from steptool.chat.formats.base import RESPONSE, ChatFormat, Format, read_bare_object, refuse_response
from steptool.records import ToolCall

PYTHON_TAG = "<|python_tag|>"


def _write(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "parameters": dict(call.arguments)}, LLAMA.marks)
    return f"{thought}{PYTHON_TAG}{body}" if thought else body


def _read(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(PYTHON_TAG, start)
    if begin < 0 or text[start:].lstrip().startswith("{"):
        return read_bare_object(text, start)
    refuse_response(text[start:begin])
    return begin, read_call(read_json(text[begin + len(PYTHON_TAG) :]))


LLAMA = Format(
    ChatFormat.LLAMA,
    '{"name": <name of the tool>, "parameters": <object>}',
    RESPONSE,
    (PYTHON_TAG,),
    _write,
    _read,
)
