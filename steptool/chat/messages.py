"""Messages in OpenAI's form, as everything here keeps them, and the older form with function_call.

The internal form: text as content, calls under `tool_calls` with their arguments as an object, a tool's answer as a
message of the role `tool` with the tool's name. Ids are kept but not needed: each answer follows its call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from steptool.chat.calls import read_call, read_json, write_json
from steptool.records import Message, ToolCall

NO_CALL = "error"
"""Name of the tool message that answers a turn without a call."""


_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields in which models that reason say what they think before they speak."""


def call_message(call: ToolCall, thought: str = "") -> Message:
    """An assistant message that makes one call."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"role": "assistant", "content": thought, "tool_calls": [{"type": "function", "function": function}]}


def tool_message(name: str, observation: str) -> Message:
    """The answer of the tool of that name."""
    return {"role": "tool", "name": name, "content": observation}


def text_of(message: Message) -> str:
    """The content of a message; empty for an assistant that only calls. Raises ValueError where it is no text."""
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""
    if not isinstance(content, str):
        raise ValueError(f"a {message['role']} message needs text as its content, got {content!r}")
    return content


def reasoning_of(message: Message) -> str:
    """What a model has thought, from the field in which servers and recordings keep it; empty without one."""
    fields = [message[field] for field in _REASONING if isinstance(message.get(field), str)]
    if thought := next((text.strip() for text in fields if text.strip()), ""):
        return thought
    details = message.get("reasoning_details")
    parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    texts = [part[kind] for part in parts for kind in ("text", "summary") if isinstance(part.get(kind), str)]
    return "\n".join(text for text in texts if text).strip()


def calls_of(message: Message) -> list[ToolCall]:
    """The calls of a message. Arguments may be an object or its JSON text; an empty text and null mean none.

    Raises ValueError naming the call that cannot be read.
    """
    return [_read(call.get("function"), f"tool_calls[{n}]") for n, call in enumerate(message.get("tool_calls") or [])]


def one_call_per_turn(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with one call in each assistant message, in the internal form.

    A message with several calls becomes as many, each followed by its answer; the text stands before the first. An
    answer belongs to the call with its id. Where one of the two has no id, it belongs to the first call with its name,
    and without a name to the first call. Answers that belong to no call come last. Raises ValueError where a call
    cannot be read.
    """
    turns: list[Message] = []
    begin = 0
    while begin < len(messages):
        end = begin + 1
        if messages[begin].get("tool_calls"):
            while end < len(messages) and messages[end]["role"] == "tool":
                end += 1
            turns += _split(messages[begin], list(messages[begin + 1 : end]))
        else:
            turns.append(messages[begin])
        begin = end
    return turns


def _split(message: Message, answers: list[Message]) -> Iterator[Message]:
    head, text = message, text_of(message)
    for call, raw in zip(calls_of(message), message["tool_calls"], strict=True):
        turn, call_id = call_message(call, text), raw.get("id")
        if call_id is not None:
            turn["tool_calls"][0]["id"] = call_id
        yield {**head, **turn}
        head, text = {}, ""
        position = _find_answer(answers, call_id, call.name)
        if position is not None:
            answer = answers.pop(position)
            yield {**answer, "name": answer.get("name") or call.name}
    yield from answers


def _find_answer(answers: Sequence[Message], call_id: str | None, name: str) -> int | None:
    """Position of the answer to a call: by id, else by name, else the first without a name."""
    ids = [answer.get("tool_call_id") for answer in answers]
    if call_id is not None and call_id in ids:
        return ids.index(call_id)
    open_answers = [n for n, answer_id in enumerate(ids) if call_id is None or answer_id is None]
    by_name = [n for n in open_answers if answers[n].get("name") == name]
    return next(iter(by_name or [n for n in open_answers if not answers[n].get("name")]), None)


def to_legacy(messages: Sequence[Message]) -> list[Message]:
    """The conversation with function_call and the role `function`, one call in each message. Ids are lost.

    Raises ValueError where a call cannot be read or has arguments that are not JSON.
    """
    legacy = []
    for message in one_call_per_turn(messages):
        fields = {k: v for k, v in message.items() if k not in ("tool_calls", "tool_call_id")}
        if message["role"] == "tool":
            fields["role"] = "function"
        for call in calls_of(message):
            fields["function_call"] = {"name": call.name, "arguments": write_json(dict(call.arguments))}
        legacy.append(fields)
    return legacy


def from_legacy(messages: Sequence[Message]) -> list[Message]:
    """The internal form of a conversation with function_call and the role `function`.

    An answer without a name gets that of the call before it. Raises ValueError where a call cannot be read.
    """
    turns, tool_name = [], NO_CALL
    for message in messages:
        fields = {k: v for k, v in message.items() if k != "function_call"}
        if message.get("function_call"):
            call = _read(message["function_call"], "function_call")
            fields, tool_name = {**fields, **call_message(call, text_of(message))}, call.name
        elif message["role"] == "assistant":
            tool_name = NO_CALL
        elif message["role"] == "function":
            fields = {**fields, "role": "tool", "name": message.get("name") or tool_name}
        turns.append(fields)
    return turns


def _read(function: Any, where: str) -> ToolCall:
    try:
        if not isinstance(function, dict):
            raise ValueError("tool call is not an object")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = read_json(arguments) if arguments.strip() not in ("", "null") else {}
        return read_call({"name": function.get("name"), "arguments": arguments})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected a name and arguments, got {str(function)[:200]}") from None
