"""Conversations in OpenAI's form as recorded answers: tool_calls or function_call, one call or several in a message."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from steptool.chat.finish import GIVE_ANSWER
from steptool.data.intake import Record, UnusableError, field, parse_json, shown, text_field
from steptool.data.sources.answers import Answer, Turn, joined, recorded_answer
from steptool.data.sources.toolbench import checked
from steptool.records import FINISH, ToolSchema

Offered = Callable[[], tuple[ToolSchema, ...]]
"""The tools of a record that lists none. Raises UnusableError if there are none either."""
_Call = tuple[str, str, str | None]
"""Name of a tool, arguments as text, and the call's id."""
_GAP = "\n\n"
_INSTRUCTING = ("system", "developer", "user")


def conversation_answer(record: Record, offered: Offered) -> Answer:
    """A record with `messages`, and `tools` (or `functions`) and `solved` where it has them.

    What the system and the user say before the assistant's first turn is the instruction. Where no tool is called
    Finish, the assistant's words without a call are its answer, and become a Finish. Raises UnusableError naming the
    message or field.
    """
    messages = _read(field(record.value, "messages", (list, str)), "messages")
    if not isinstance(messages, list):
        raise UnusableError("ill-typed field 'messages'", f"field 'messages': expected a list, got {shown(messages)}")
    messages = [_read(message, f"messages[{n}]") for n, message in enumerate(messages)]
    first = next((n for n, m in enumerate(messages) if field(m, "role", str, f"messages[{n}]") == "assistant"), None)
    if first is None:
        raise UnusableError("no recorded step", "no message is the assistant's")
    tools, declared = _tools(record.value, offered)
    turns = read_turns(messages[first:], "messages", first)
    if FINISH not in declared:
        turns = [_answered(turn) for turn in turns]
    return recorded_answer(record, _instruction(messages[:first]), tools, turns, _solved(record.value))


def read_turns(messages: Sequence[Any], where: str, first: int = 0) -> list[Turn]:
    """The turns of messages of the roles assistant, tool (or function) and user; the first has the number `first`.

    Calls of one message become turns of their own. A response belongs to the call with its id, else to the first one
    without a response; without any, to the words that the assistant said last. Words before a call are its thought.
    """
    reader = _Turns()
    for number, message in enumerate(messages, start=first):
        at = f"{where}[{number}]"
        role, text = field(message, "role", str, at), text_of(message, at)
        if role == "assistant":
            reader.assistant(text, _calls(message, at))
        elif role in ("tool", "function"):
            reader.tool(text, message.get("tool_call_id"), at)
        elif role == "user":
            reader.user(text)
        else:
            raise UnusableError("a message of another role", f"{at}: expected user, assistant or tool, got {role!r}")
    return reader.finished()


class _Turns:
    """Turns in the making."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._words: list[str] = []
        """What the assistant has said since its last call."""
        self._waiting: list[tuple[int, str | None]] = []
        """Calls without a response: the number of the turn and the call's id."""

    def assistant(self, text: str, calls: Sequence[_Call]) -> None:
        self._words.append(text)
        for name, arguments, call_id in calls:
            self._waiting.append((len(self._turns), call_id))
            self._turns.append(Turn(joined(self._words), name, arguments, None))
            self._words = []

    def tool(self, text: str, call_id: Any, where: str) -> None:
        if self._waiting:
            position = next((n for n, (_, waits) in enumerate(self._waiting) if call_id and waits == call_id), 0)
            number, _ = self._waiting.pop(position)
            self._turns[number] = self._turns[number]._replace(observation=text)
        elif not self._words_alone(text):
            raise UnusableError("a response without a call", f"{where}: no call before it waits for a response")

    def user(self, text: str) -> None:
        self._words_alone(None)
        if not self._turns:
            return
        turn = self._turns[-1]
        if turn.name == FINISH:  # it is the user who answers
            self._waiting = [(number, call_id) for number, call_id in self._waiting if number < len(self._turns) - 1]
        self._turns[-1] = turn._replace(user=text if turn.user is None else turn.user + _GAP + text)

    def finished(self) -> list[Turn]:
        self._words_alone(None)
        return self._turns

    def _words_alone(self, observation: str | None) -> bool:
        """Whether there are words that lead to no call; they become a turn of their own."""
        words, self._words = joined(self._words), []
        if words:
            self._turns.append(Turn("", "", words, observation))
        return bool(words)


def _calls(message: dict[str, Any], where: str) -> list[_Call]:
    calls = field(message, "tool_calls", list, where) if message.get("tool_calls") else []
    read = [
        (*_function(field(call, "function", dict, at), at), call.get("id"))
        for n, call in enumerate(calls)
        for at in [f"{where}.tool_calls[{n}]"]
    ]
    if not read and message.get("function_call"):
        read = [(*_function(field(message, "function_call", dict, where), f"{where}.function_call"), None)]
    return read


def _function(call: dict[str, Any], where: str) -> tuple[str, str]:
    return text_field(call, "name", where), as_text(call.get("arguments"))


def text_of(message: dict[str, Any], where: str) -> str:
    """What a message says, its parts of text put together. Raises UnusableError where a part is no text."""
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return as_text(content)
    if odd := [part["type"] for part in content if part["type"] != "text"]:
        raise UnusableError("content that is no text", f"{where}.content: a part of the type {shown(odd[0])}")
    return "".join(field(part, "text", str, f"{where}.content") for part in content)


def as_text(value: Any) -> str:
    """Text as it is, nothing as the empty text, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _read(value: Any, where: str) -> Any:
    """A value that may be given as its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except UnusableError as error:
        raise UnusableError(error.reason, f"{where}: {error.detail}") from None


def _instruction(messages: Sequence[dict[str, Any]]) -> str:
    said = []
    for number, message in enumerate(messages):
        if message["role"] not in _INSTRUCTING:
            detail = f"messages[{number}]: expected {', '.join(_INSTRUCTING)}, got {message['role']!r}"
            raise UnusableError("a message of another role", detail)
        said.append(text_of(message, f"messages[{number}]"))
    if not any(text.strip() for text, m in zip(said, messages, strict=True) if m["role"] == "user"):
        raise UnusableError("no instruction", "the user says nothing before the assistant's first turn")
    return _GAP.join(text for text in said if text.strip())


def _tools(value: dict[str, Any], offered: Offered) -> tuple[tuple[ToolSchema, ...], set[str]]:
    """The tools with Finish as the last, and the names that were recorded."""
    name = next((n for n in ("tools", "functions") if value.get(n) is not None), None)
    if name is None:
        return offered(), set()
    listed = _read(value[name], name)
    if not isinstance(listed, list):
        raise UnusableError(f"ill-typed field '{name}'", f"field '{name}': expected a list, got {shown(listed)}")
    schemas = [openai_tool(_read(tool, f"{name}[{n}]")) for n, tool in enumerate(listed)]
    return checked(schemas, name), {schema["function"]["name"] for schema in schemas}


def openai_tool(tool: Any) -> Any:
    """A tool in OpenAI's form: a bare function is wrapped, and what may be left out is filled in."""
    function = tool.get("function") if isinstance(tool, dict) and "function" in tool else tool
    if not isinstance(function, dict):
        return tool
    empty = {"description": "", "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": empty | {k: v for k, v in function.items() if v is not None}}


def _answered(turn: Turn) -> Turn:
    """Words without a call as a Finish that answers with them; unless a tool answered them as a call gone wrong."""
    if turn.name or turn.observation is not None:
        return turn
    arguments = json.dumps({"return_type": GIVE_ANSWER, "final_answer": turn.arguments}, ensure_ascii=False)
    return turn._replace(name=FINISH, arguments=arguments)


def _solved(value: dict[str, Any]) -> float | None:
    solved = value.get("solved")
    if solved is None:
        return None
    if not isinstance(solved, int | float) or not 0 <= solved <= 1:
        raise UnusableError("ill-typed field 'solved'", f"field 'solved': expected 0 to 1, got {shown(solved)}")
    return float(solved)
