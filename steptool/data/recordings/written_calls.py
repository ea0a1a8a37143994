"""Calls that models wrote into the assistant's text in the forms of their own chat templates.

Qwen 3.5, GLM      <tool_call>...</tool_call> around something other than JSON, several one after the other
DeepSeek           <｜tool▁call▁begin｜>...<｜tool▁call▁end｜>, several one after the other
Mistral            [TOOL_CALLS] and a list of calls, or several [TOOL_CALLS]name[ARGS]{...}
Llama 3.1          one JSON object, or several with semicolons or line breaks between them
gpt-oss            messages of the channels analysis (a thought), commentary (a call) and final (the answer)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steptool.chat.calls import read_first_json
from steptool.chat.formats import DEEPSEEK, GLM, GPT_OSS, LLAMA, MISTRAL, QWEN_XML, Format
from steptool.data.parsing import join_texts
from steptool.records import ToolCall, ToolSchema

_TAGS = re.compile(r"<tool_call>.*?</tool_call>", re.DOTALL)
_DEEPSEEK = re.compile(r"<｜tool▁call▁begin｜>.*?<｜tool▁call▁end｜>", re.DOTALL)
_DEEPSEEK_ALL = re.compile(r"<｜tool▁calls▁(?:begin|end)｜>")
_MISTRAL = re.compile(r"\[TOOL_CALLS\].*?(?=\[TOOL_CALLS\]|\Z)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
_HARMONY = re.compile(
    r"(?:<\|start\|>assistant)?(?P<header>[^<]*(?:<\|channel\|>[^<]*)(?:<\|constrain\|>[^<]*)?)<\|message\|>"
    r"(?P<body>.*?)(?:<\|end\|>|<\|return\|>|<\|call\|>|\Z)",
    re.DOTALL,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


def read_written_calls(messages: Sequence[Any], tools: Sequence[ToolSchema]) -> list[Any]:
    """The messages with the calls that models wrote into the assistant's text, under `tool_calls`.

    A text makes calls where each names one of the tools or where a tool answers it. The tools give arguments their
    types. Messages without such calls stay as they are.
    """
    names = {tool["function"]["name"] for tool in tools}
    read: list[Any] = []
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        message = _read_harmony(message)
        calls, thought = _read_calls(message, tools)
        answered = isinstance(following, dict) and following.get("role") in ("tool", "function")
        if calls and (answered or all(call.name in names for call in calls)):
            tool_calls = [{"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in calls]
            message = {**message, "content": thought, "tool_calls": tool_calls}
        read.append(message)
    return read


def _read_calls(message: Any, tools: Sequence[ToolSchema]) -> tuple[list[ToolCall], str]:
    """All calls in the text of an assistant's message without other calls, and the thought before them."""
    text = message.get("content") if isinstance(message, dict) and message.get("role") == "assistant" else None
    if isinstance(text, str) and not message.get("tool_calls") and not message.get("function_call"):
        for written in (QWEN_XML, GLM, DEEPSEEK, MISTRAL, LLAMA):
            if turns := [written.parse(part, tools) for part in _split_calls(written, text)]:
                calls = [turn.call for turn in turns if turn.call]
                if len(calls) == len(turns):
                    return calls, turns[0].thought
    return [], ""


def _split_calls(written: Format, text: str) -> list[str]:
    """The text as parts of one call each, the words before the first with it; whole where it makes one call or none."""
    parts: list[str] = []
    words = text
    if written in (QWEN_XML, GLM):
        parts, words = _TAGS.findall(text), _TAGS.sub("", text)
    elif written is DEEPSEEK:
        text = _DEEPSEEK_ALL.sub("", text)
        parts, words = _DEEPSEEK.findall(text), _DEEPSEEK.sub("", text)
    elif written is MISTRAL:
        parts = [part for call in _MISTRAL.findall(text) for part in _split_list(call)]
        words = _MISTRAL.sub("", text)
    elif written is LLAMA:
        head, tag, body = text.rpartition(_PYTHON_TAG)
        parts, words = list(_split_objects(body)), head + tag
    if len(parts) < 2 or not text.startswith(words.rstrip()):
        return [text]
    return [words + parts[0], *parts[1:]]


def _split_list(call: str) -> list[str]:
    """[TOOL_CALLS] with a list of calls, as one for each of them."""
    try:
        calls = json.loads(call.removeprefix("[TOOL_CALLS]"))
    except (ValueError, RecursionError):
        return [call]
    return [f"[TOOL_CALLS]{json.dumps([one])}" for one in calls] if isinstance(calls, list) else [call]


def _split_objects(text: str) -> Iterator[str]:
    """JSON objects with nothing but semicolons and white space between them; nothing where the text holds more."""
    objects: list[str] = []
    while text.strip():
        text = text.lstrip()
        try:
            value, end = read_first_json(text)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        objects.append(text[:end])
        text = text[end:].lstrip().removeprefix(";")
    yield from objects


def _read_harmony(message: Any) -> Any:
    """An assistant's message of gpt-oss' channels as thought, words and call; any other message as it is.

    The call keeps its form, without the tokens that end a message, as the format of gpt-oss reads it.
    """
    text = message.get("content") if isinstance(message, Mapping) and message.get("role") == "assistant" else None
    if not isinstance(text, str) or "<|channel|>" not in text or "<|message|>" not in text:
        return message
    thoughts, words, calls = [], [], []
    for part in _HARMONY.finditer(text):
        channel = _CHANNEL.search(part["header"])
        if "to=functions." in part["header"]:
            calls.append(f"{part['header']}<|message|>{part['body']}")
        elif channel and channel[1] == "analysis":
            thoughts.append(part["body"].strip())
        else:
            words.append(part["body"].strip())
    read = [GPT_OSS.parse(call).call for call in calls]
    if not all(read):
        return message
    tool_calls = [{"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in read if call]
    reasoning = {"reasoning_content": join_texts(thoughts)} if thoughts else {}
    return {**message, "content": join_texts(words), **reasoning, **({"tool_calls": tool_calls} if tool_calls else {})}
