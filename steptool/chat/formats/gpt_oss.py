"""gpt-oss: a turn is several messages, each in a channel; a call is the message to functions.<name>."""

from __future__ import annotations

import re

from steptool.chat.calls import read_call, read_json, write_json
from steptool.chat.formats.base import RESPONSE, ChatFormat, Format, refuse_response
from steptool.records import ToolCall

_START, _MESSAGE, _END, _CHANNEL = "<|start|>", "<|message|>", "<|end|>", "<|channel|>"
_ASSISTANT = f"{_START}assistant"
_RECIPIENT = re.compile(r"to=functions\.")
_HEADER = re.compile(
    r"\s*(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)?\s*to=functions\.([^\s<]+)\s*"
    r"(?:<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*"
)
"""The header of a call. The recipient stands before the channel or behind it."""
_ANALYSIS = re.compile(rf"{re.escape(_CHANNEL)}analysis{re.escape(_MESSAGE)}(.*?){re.escape(_END)}", re.DOTALL)


def _write(call: ToolCall, thought: str) -> str:
    analysis = f"{_CHANNEL}analysis{_MESSAGE}{thought}{_END}{_ASSISTANT}" if thought else ""
    body = write_json(dict(call.arguments), GPT_OSS.marks)
    return f"{analysis} to=functions.{call.name}{_CHANNEL}commentary json{_MESSAGE}{body}"


def _read(text: str, start: int) -> tuple[int, ToolCall]:
    """The call in the last message of the turn. The prompt has written the first message's <|start|>assistant."""
    head, _, body = text.rpartition(_MESSAGE)
    begin = max(head.rfind(_START), 0)
    header = _HEADER.fullmatch(head[begin:])
    recipients = len(_RECIPIENT.findall(head))
    if recipients > 1:
        raise ValueError("more than one tool call")
    if not header:
        raise ValueError("text after the tool call" if recipients else "no tool call")
    refuse_response(head)
    if f"{_START}functions." in head:
        raise ValueError("a tool's response before the tool call")
    return begin, read_call({"name": header[1], "arguments": read_json(body)})


def _read_thought(text: str) -> str:
    return "\n".join(_ANALYSIS.findall(text)).strip()


GPT_OSS = Format(
    ChatFormat.GPT_OSS,
    f" to=functions.<name of the tool>{_CHANNEL}commentary json{_MESSAGE}<object>",
    RESPONSE,
    (_START, _MESSAGE, _END, _CHANNEL, "<|constrain|>"),
    _write,
    _read,
    _read_thought,
)
