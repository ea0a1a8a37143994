"""GLM 4.5 and later: the name and pairs of <arg_key> and <arg_value> between <tool_call> tags."""

from __future__ import annotations

import re

from steptool.chat.formats.base import CALL_CLOSE, CALL_OPEN, RESPONSE, ChatFormat, Format, read_between_tags
from steptool.chat.formats.values import write_value
from steptool.records import ToolCall

_NAME = re.compile(r"\s*([^\s<]+)\s*")
_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def _write(call: ToolCall, thought: str) -> str:
    pairs = "".join(
        f"<arg_key>{name}</arg_key>\n<arg_value>{write_value(value)}</arg_value>\n"
        for name, value in call.arguments.items()
    )
    text = f"{CALL_OPEN}{call.name}\n{pairs}{CALL_CLOSE}"
    return f"{thought}\n{text}" if thought else text


def _read(text: str, start: int) -> tuple[int, ToolCall]:
    begin, body = read_between_tags(text, start)
    name = _NAME.match(body)
    if not name:
        raise ValueError("tool call without name")
    arguments, end = {}, name.end()
    while pair := _PAIR.match(body, end):
        arguments[pair[1]], end = pair[2], pair.end()
    if body[end:].strip():
        raise ValueError("tool call with text besides its arguments")
    return begin, ToolCall(name[1], arguments)


GLM = Format(
    ChatFormat.GLM,
    "<tool_call><name of the tool>\n<arg_key><name></arg_key>\n<arg_value><value></arg_value>\n</tool_call>",
    RESPONSE,
    (CALL_OPEN, CALL_CLOSE, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    _write,
    _read,
    textual=True,
)
