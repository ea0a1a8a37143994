"""DeepSeek V3, V3.1 and R1: one call between <｜tool▁call▁begin｜> and <｜tool▁call▁end｜>."""

from __future__ import annotations

import re

from steptool.chat.calls import read_call, read_json, write_json
from steptool.chat.formats.base import RESPONSE, ChatFormat, Format, refuse_response
from steptool.records import ToolCall

_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_BODY = re.compile(rf"(?:function{_SEPARATOR}([^\n]+)\n```json\n(.*?)\n?```|([^\n]+?){_SEPARATOR}(.*))\s*", re.DOTALL)
"""V3 and R1 write "function", the name and a fence; V3.1 writes the name and the bare object."""


def _write(call: ToolCall, thought: str) -> str:
    arguments = write_json(dict(call.arguments), (*DEEPSEEK.marks, "```"))
    body = f"function{_SEPARATOR}{call.name}\n```json\n{arguments}\n```"
    return f"{thought}{_CALLS_BEGIN}{_BEGIN}{body}{_END}{_CALLS_END}"


def _read(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(_BEGIN, start)
    if begin < 0:
        raise ValueError("no tool call")
    body, end, rest = text[begin + len(_BEGIN) :].rpartition(_END)
    if not end:
        raise ValueError("tool call not closed")
    if _BEGIN in body:
        raise ValueError("more than one tool call")
    thought = text[:begin].rstrip().removesuffix(_CALLS_BEGIN)
    opened = thought != text[:begin].rstrip()
    if opened and _CALLS_END not in rest:
        raise ValueError("tool call not closed")
    if (rest.replace(_CALLS_END, "", 1) if opened else rest).strip():
        raise ValueError("text after the tool call")
    refuse_response(thought[start:])
    match = _BODY.fullmatch(body)
    if not match:
        raise ValueError(f"tool call without {_SEPARATOR}")
    name, arguments = (match[1], match[2]) if match[1] else (match[3], match[4])
    return len(thought), read_call({"name": name.strip(), "arguments": read_json(arguments)})


DEEPSEEK = Format(
    ChatFormat.DEEPSEEK,
    f"{_CALLS_BEGIN}{_BEGIN}function{_SEPARATOR}<name of the tool>\n```json\n<object>\n```{_END}{_CALLS_END}",
    RESPONSE,
    (_CALLS_BEGIN, _CALLS_END, _BEGIN, _SEPARATOR, _END),
    _write,
    _read,
)
