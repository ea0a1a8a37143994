"""A whole conversation in messages of text alone, for chat templates that know no tools, and back.

Calls stand in the assistant's text as the format writes them, and the user tells what the tools answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from steptool.chat.calls import write_json
from steptool.chat.formats import Format
from steptool.chat.messages import NO_CALL, call_message, calls_of, one_call_per_turn, text_of, tool_message
from steptool.records import Message, ToolSchema

_ESCAPE = "\\"
_GAP = "\n\n"


def to_text(messages: Sequence[Message], form: Format, tools: Sequence[ToolSchema] = ()) -> list[Message]:
    """The conversation as messages of role and content, one call in each assistant message.

    A user's own message that looks like an answer of a tool gets a backslash before it. Raises ValueError where the
    format cannot carry a call or a thought, and where an assistant's text would be read as a call.
    """
    return [_to_text(message, form, tools) for message in one_call_per_turn(messages)]


def from_text(messages: Sequence[Message], form: Format, tools: Sequence[ToolSchema] = ()) -> list[Message]:
    """The internal form of a conversation of text: the inverse of `to_text`.

    An assistant's text without a well-formed call stays text. A tool's answer gets the name of the call before it.
    """
    turns, tool_name = [], NO_CALL
    before, after = form.observation
    for message in messages:
        text = text_of(message)
        if message["role"] == "assistant":
            turn = form.parse(text, tools)
            tool_name = turn.call.name if turn.call else NO_CALL
            turns.append(call_message(turn.call, turn.thought) if turn.call else message)
        elif message["role"] != "user":
            turns.append(message)
        elif text.startswith(before) and text.endswith(after) and len(text) >= len(before + after):
            turns.append(tool_message(tool_name, text[len(before) : len(text) - len(after)]))
        else:
            escaped = text.startswith(_ESCAPE) and text.lstrip(_ESCAPE).startswith(before)
            turns.append({**message, "content": text[len(_ESCAPE) :] if escaped else text})
    return turns


def describe(tools: Sequence[ToolSchema], form: Format, *, answers: bool = True) -> str:
    """What a model has to know of the tools: their schemas, how to call them, and with `answers` how they answer."""
    before, after = form.observation
    schemas = "\n".join(write_json(tool["function"]) for tool in tools)
    text = (
        f"Solve the task with these tools, one call in each turn:\n{schemas}\n\n"
        f"End your turn with the call, in this form:\n{form.form}"
    )
    response = f"\n\nThe next message brings what the tool answers, in this form:\n{before}<answer>{after}"
    return text + response if answers else text


def with_tools(
    messages: Sequence[Message], tools: Sequence[ToolSchema], form: Format, role: str, *, answers: bool = True
) -> list[Message]:
    """The messages of a text conversation after one of the given role that describes the tools.

    A system message at the beginning becomes a part of it.
    """
    parts = [describe(tools, form, answers=answers)] if tools else []
    if messages and messages[0]["role"] == "system":
        parts.insert(0, text_of(messages[0]))
        messages = messages[1:]
    return [{"role": role, "content": _GAP.join(parts)}, *messages] if parts else list(messages)


def alternating(messages: Sequence[Message]) -> list[Message]:
    """The messages with those of the user that stand side by side made one, as many templates want it."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"] == "user":
            turns[-1] = {**turns[-1], "content": turns[-1]["content"] + _GAP + message["content"]}
        else:
            turns.append(message)
    return turns


def _to_text(message: Message, form: Format, tools: Sequence[ToolSchema]) -> Message:
    role, text, (before, after) = message["role"], text_of(message), form.observation
    if role == "assistant":
        calls = calls_of(message)
        return {"role": role, "content": form.render(calls[0], text, tools) if calls else _no_call(text, form)}
    if role == "tool":
        return {"role": "user", "content": f"{before}{text}{after}"}
    looks = role == "user" and text.lstrip(_ESCAPE).startswith(before)
    return {"role": role, "content": f"{_ESCAPE}{text}" if looks else text}


def _no_call(text: str, form: Format) -> str:
    if form.parse(text).call:
        raise ValueError(
            f"an assistant message without tool_calls would be read as a call: {text[:200]!r}; read such conversations "
            "with steptool.chat.plain.from_text first"
        )
    return text
