"""Qwen 3.5 and 3.6, Qwen3-Coder and Nemotron 3: a function and its parameters as tags between <tool_call> tags."""

from __future__ import annotations

import re

from steptool.chat.formats.base import CALL_CLOSE, CALL_OPEN, RESPONSE, ChatFormat, Format, read_between_tags
from steptool.chat.formats.values import write_value
from steptool.records import ToolCall

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


def _write(call: ToolCall, thought: str) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{write_value(value)}\n</parameter>\n" for name, value in call.arguments.items()
    )
    text = f"{CALL_OPEN}\n<function={call.name}>\n{parameters}</function>\n{CALL_CLOSE}"
    return f"{thought}\n\n{text}" if thought else text


def _read(text: str, start: int) -> tuple[int, ToolCall]:
    begin, body = read_between_tags(text, start)
    function = _FUNCTION.fullmatch(body)
    if not function:
        raise ValueError("tool call without <function=name> and </function>")
    arguments, end = {}, 0
    while parameter := _PARAMETER.match(function[2], end):
        arguments[parameter[1]], end = parameter[2], parameter.end()
    if function[2][end:].strip():
        raise ValueError("tool call with text besides its parameters")
    return begin, ToolCall(function[1], arguments)


QWEN_XML = Format(
    ChatFormat.QWEN_XML,
    "<tool_call>\n<function=<name of the tool>>\n<parameter=<name>>\n<value>\n</parameter>\n</function>\n</tool_call>",
    RESPONSE,
    (CALL_OPEN, CALL_CLOSE, "</function>", "</parameter>"),
    _write,
    _read,
    textual=True,
)
