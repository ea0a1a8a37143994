"""Messages and calls in OpenAI's form, as everything here keeps them.

The internal form has text as content, calls under `tool_calls` with their arguments as an object, and a tool's answer
as a message of the role `tool` with the tool's name. Ids are kept but not needed: each answer follows its call. Calls
are read strictly. The call of `Finish` ends an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from steptool.records import FINISH, Message, ToolCall, ToolSchema

DEEPEST = 100
"""Levels of objects and lists in a value: what is nested deeper can be read, but not written everywhere."""
_FIELDS = {"name", "arguments", "parameters", "type"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"invalid JSON: {name}")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def read_json(text: str) -> Any:
    """The one JSON value of a text; of equal keys the last counts. Raises ValueError in few words for the model."""
    text = text.strip()
    value, end = read_first_json(text)
    if end < len(text):
        raise ValueError("invalid JSON: Extra data")
    return value


def read_first_json(text: str) -> tuple[Any, int]:
    """The JSON value that a text begins with, and where it ends. Raises ValueError in few words for the model."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("invalid JSON: nested too deeply") from None
    if text.count("[", 0, end) + text.count("{", 0, end) > DEEPEST and measure_nesting(value) > DEEPEST:
        raise ValueError("invalid JSON: nested too deeply")
    return value, end


def measure_nesting(value: Any) -> int:
    """Levels of objects and lists in a value."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [item for inner in level for item in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def write_json(value: Any, marks: Sequence[str] = ()) -> str:
    """A value as JSON without any of the `marks`: within strings, the first character of a mark is escaped.

    Raises ValueError for a value that JSON cannot represent.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON value: {error}") from None
    for mark in marks:
        text = text.replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")
    return text


def read_call(value: Any) -> ToolCall:
    """The call that a JSON object with "name" and "arguments" (or "parameters") makes. A "type" may say "function".

    Raises ValueError in few words for the model where it is no such object, or holds other fields.
    """
    if not isinstance(value, Mapping):
        raise ValueError("tool call is not an object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("tool call without name")
    if value.keys() - _FIELDS or value.get("type", "function") != "function":
        raise ValueError("tool call with fields besides name and arguments")
    if "arguments" in value and "parameters" in value:
        raise ValueError("tool call with arguments and parameters")
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(arguments, Mapping):
        raise ValueError("arguments are not an object")
    # Numbers beyond a float and halves of surrogate pairs can be read but not written again.
    try:
        write_json([name, dict(arguments)]).encode()
    except ValueError:
        raise ValueError("invalid JSON: a value out of range") from None
    return ToolCall(name, dict(arguments))


GIVE_ANSWER = "give_answer"
GIVE_UP = "give_up_and_restart"

FINISH_SCHEMA: ToolSchema = {
    "type": "function",
    "function": {
        "name": FINISH,
        "description": "End the task: give the final answer, or give up. Call it exactly once, as the last step.",
        "parameters": {
            "type": "object",
            "properties": {
                "return_type": {"type": "string", "enum": [GIVE_ANSWER, GIVE_UP]},
                "final_answer": {"type": "string", "description": "The answer that the user will see"},
            },
            "required": ["return_type"],
        },
    },
}


ANNOTATIONS = "annotations"
"""Field of a schema's "function" with MCP's hints, such as {"readOnlyHint": true}. Models do not see it."""
READ_ONLY_HINT = "readOnlyHint"
READ_ONLY_FIELD = "x-read-only"
"""Field of a schema's "function" that says the same where a task lists its tools itself."""

REPORTS_FIELD = "x-reports"
"""Field of a schema's "function" that says whether a call only tells the user what it quotes."""
_HINTS = (ANNOTATIONS, READ_ONLY_FIELD, REPORTS_FIELD)


def reads_only(tool: ToolSchema) -> bool | None:
    """Whether a call of the tool changes nothing; None where its schema does not say."""
    function = tool["function"]
    annotations = function.get(ANNOTATIONS)
    hint = annotations.get(READ_ONLY_HINT) if isinstance(annotations, dict) else None
    hint = function.get(READ_ONLY_FIELD, hint)
    return hint if isinstance(hint, bool) else None


def reports_only(tool: ToolSchema) -> bool | None:
    """Whether a call of the tool only tells the user what it quotes; None where its schema does not say."""
    hint = tool["function"].get(REPORTS_FIELD)
    return hint if isinstance(hint, bool) else None


def annotate_tool(tool: ToolSchema, read_only: bool | None) -> ToolSchema:
    """The schema with a hint whether the tool only reads; the schema as it is for None."""
    if read_only is None:
        return tool
    return {**tool, "function": {**tool["function"], ANNOTATIONS: {READ_ONLY_HINT: read_only}}}


def strip_hints(tools: Iterable[ToolSchema]) -> list[ToolSchema]:
    """The schemas as a model sees them: without hints, which would cost tokens and which some endpoints refuse."""
    return [_remove_hints(tool) for tool in tools]


def _remove_hints(tool: ToolSchema) -> ToolSchema:
    function = tool["function"]
    if not any(hint in function for hint in _HINTS):
        return tool
    fields = {key: value for key, value in function.items() if key not in _HINTS}
    return {**tool, "function": fields}


NO_CALL = "error"
"""Name of the tool message that answers a turn without a call."""


_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields in which models that reason say what they think before they speak."""


def make_call_message(call: ToolCall, thought: str = "") -> Message:
    """An assistant message that makes one call."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"role": "assistant", "content": thought, "tool_calls": [{"type": "function", "function": function}]}


def make_tool_message(name: str, observation: str) -> Message:
    """The answer of the tool of that name."""
    return {"role": "tool", "name": name, "content": observation}


def read_text(message: Message) -> str:
    """The content of a message; empty for an assistant that only calls. Raises ValueError where it is no text."""
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""
    if not isinstance(content, str):
        raise ValueError(f"a {message['role']} message needs text as its content, got {content!r}")
    return content


def read_reasoning(message: Message) -> str:
    """What a model has thought, from the field in which servers and recordings keep it; empty without one."""
    fields = [message[field] for field in _REASONING if isinstance(message.get(field), str)]
    if thought := next((text.strip() for text in fields if text.strip()), ""):
        return thought
    details = message.get("reasoning_details")
    parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    texts = [part[kind] for part in parts for kind in ("text", "summary") if isinstance(part.get(kind), str)]
    return "\n".join(text for text in texts if text).strip()


def read_calls(message: Message) -> list[ToolCall]:
    """The calls of a message. Arguments may be an object or its JSON text; an empty text and null mean none.

    Raises ValueError naming the call that cannot be read.
    """
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list | tuple):
        raise ValueError(f"tool_calls: expected a list of calls, got {str(calls)[:200]}")
    functions = [call.get("function") if isinstance(call, dict) else call for call in calls]
    return [_read_function(function, f"tool_calls[{n}]") for n, function in enumerate(functions)]


def split_calls(messages: Sequence[Message]) -> list[Message]:
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
            turns += _split_message(messages[begin], list(messages[begin + 1 : end]))
        else:
            turns.append(messages[begin])
        begin = end
    return turns


def _split_message(message: Message, answers: list[Message]) -> Iterator[Message]:
    head, text = message, read_text(message)
    for call, raw in zip(read_calls(message), message["tool_calls"], strict=True):
        turn, call_id = make_call_message(call, text), raw.get("id")
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


def _read_function(function: Any, where: str) -> ToolCall:
    try:
        if not isinstance(function, dict):
            raise ValueError("tool call is not an object")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = read_json(arguments) if arguments.strip() not in ("", "null") else {}
        return read_call({"name": function.get("name"), "arguments": arguments})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected a name and arguments, got {str(function)[:200]}") from None
