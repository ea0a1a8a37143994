"""Conversations in OpenAI's form as recordings: tool_calls or function_call, one call or several in a message.

Models also wrote calls into the assistant's text, in the forms of their own chat templates:

    Qwen 3.5, GLM      <tool_call>...</tool_call> around something other than JSON, several one after the other
    DeepSeek           <｜tool▁call▁begin｜>...<｜tool▁call▁end｜>, several one after the other
    Mistral            [TOOL_CALLS] and a list of calls, or several [TOOL_CALLS]name[ARGS]{...}
    Llama 3.1          one JSON object, or several with semicolons or line breaks between them
    gpt-oss            messages of the channels analysis (a thought), commentary (a call) and final (the answer)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from steptool.chat.call_format import THINK_CLOSE, THINK_OPEN, Format
from steptool.chat.formats import DEEPSEEK, GLM, GPT_OSS, LLAMA, MISTRAL, QWEN_XML
from steptool.chat.messages import GIVE_ANSWER, read_first_json, read_reasoning
from steptool.data.parsing import (
    Record,
    UnusableError,
    convert_to_text,
    cut_excerpt,
    join_texts,
    parse_if_text,
    require,
)
from steptool.data.recordings.messages import find_tools_of_system, translate_messages
from steptool.data.recordings.recording import RecordedTurn, Recording, make_recording, marks_error
from steptool.data.tools import check_and_add_finish, read_openai_tools
from steptool.records import FINISH, Message, ToolCall, ToolSchema

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
    results: list[Any] = []
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        message = _read_harmony(message)
        calls, thought = _read_written_calls(message, tools)
        is_answered = isinstance(following, dict) and following.get("role") in ("tool", "function")
        if calls and (is_answered or all(call.name in names for call in calls)):
            tool_calls = [{"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in calls]
            message = {**message, "content": thought, "tool_calls": tool_calls}
        results.append(message)
    return results


def _read_written_calls(message: Any, tools: Sequence[ToolSchema]) -> tuple[list[ToolCall], str]:
    """All calls in the text of an assistant's message without other calls, and the thought before them."""
    text = message.get("content") if isinstance(message, dict) and message.get("role") == "assistant" else None
    if isinstance(text, str) and not message.get("tool_calls") and not message.get("function_call"):
        for chat_format in (QWEN_XML, GLM, DEEPSEEK, MISTRAL, LLAMA):
            if turns := [chat_format.parse(part, tools) for part in _split_calls(chat_format, text)]:
                calls = [turn.call for turn in turns if turn.call]
                if len(calls) == len(turns):
                    return calls, turns[0].thought
    return [], ""


def _split_calls(chat_format: Format, text: str) -> list[str]:
    """The text as parts of one call each, the words before the first with it; whole where it makes one call or none."""
    parts: list[str] = []
    words = text
    if chat_format in (QWEN_XML, GLM):
        parts, words = _TAGS.findall(text), _TAGS.sub("", text)
    elif chat_format is DEEPSEEK:
        text = _DEEPSEEK_ALL.sub("", text)
        parts, words = _DEEPSEEK.findall(text), _DEEPSEEK.sub("", text)
    elif chat_format is MISTRAL:
        parts = [part for call in _MISTRAL.findall(text) for part in _split_list(call)]
        words = _MISTRAL.sub("", text)
    elif chat_format is LLAMA:
        head, tag, body = text.rpartition(_PYTHON_TAG)
        parts, words = list(_split_objects(body)), head + tag
    if len(parts) < 2 or not text.startswith(words.rstrip()):
        return [text]
    return [words + parts[0], *parts[1:]]


def _split_list(call: str) -> list[str]:
    """[TOOL_CALLS] with a list of calls, as one text for each call."""
    try:
        calls = json.loads(call.removeprefix("[TOOL_CALLS]"))
    except (ValueError, RecursionError):
        return [call]
    return [f"[TOOL_CALLS]{json.dumps([single_call])}" for single_call in calls] if isinstance(calls, list) else [call]


def _split_objects(text: str) -> Iterator[str]:
    """JSON objects with only semicolons and white space between them; empty where the text holds more."""
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
    parsed_calls = [GPT_OSS.parse(call).call for call in calls]
    if not all(parsed_calls):
        return message
    tool_calls = [{"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in parsed_calls if call]
    reasoning = {"reasoning_content": join_texts(thoughts)} if thoughts else {}
    return {**message, "content": join_texts(words), **reasoning, **({"tool_calls": tool_calls} if tool_calls else {})}


DefaultTools = Callable[[], tuple[ToolSchema, ...]]
"""The tools of a record that lists none. Raises UnusableError if it finds no tools for it."""
_Call = tuple[str, str, str | None]
"""Name of a tool, arguments as text, and the call's id."""
_GAP = "\n\n"
_INSTRUCTING = ("system", "developer", "user")


def read_conversation(record: Record, default_tools: DefaultTools) -> Recording:
    """A record with `messages`, and `tools` (or `functions`) and `solved` where it has them.

    What the system and the user say before the assistant's first turn is the instruction, and the messages keep their
    roles. What the system or a developer says later stands between the turns. Where no tool is called
    Finish, the assistant's words without a call are its answer, and become a Finish. Raises UnusableError naming the
    message or field.
    """
    messages = parse_if_text(require(record.value, "messages", (list, str)), "messages")
    if not isinstance(messages, list):
        raise UnusableError(
            "ill-typed field 'messages'", f"field 'messages': expected a list, got {cut_excerpt(messages)}"
        )
    messages = translate_messages([parse_if_text(message, f"messages[{n}]") for n, message in enumerate(messages)])
    fields = record.value
    if fields.get("tools") is None and (system_tools := find_tools_of_system(messages)):
        fields, messages = {**fields, "tools": system_tools[0]}, system_tools[1]
    first = next((n for n, m in enumerate(messages) if require(m, "role", str, f"messages[{n}]") == "assistant"), None)
    if first is None:
        raise UnusableError("no recorded step", "no message is the assistant's")
    tools, declared = _read_tools(fields, default_tools)
    turns = read_turns(read_written_calls(messages[first:], tools), "messages", first)
    if FINISH not in declared:
        turns = [_make_finish(turn) for turn in turns]
    opening = _read_opening(messages[:first])
    instruction = join_texts([message["content"] for message in opening], _GAP)
    if all(message["role"] == "user" for message in opening):
        opening = []
    return make_recording(record, instruction, tools, turns, _read_verdict(record.value), opening=opening)


def read_turns(messages: Sequence[Any], where: str, first: int = 0) -> list[RecordedTurn]:
    """The turns of messages of the roles assistant, tool (or function) and user; the first has the number `first`.

    Calls of one message become turns of their own. A response belongs to the waiting call with its id; where one of the
    two has no id, to the first call with its name; where it has no name either, to the first call. Where no call waits,
    it belongs to the words that the assistant said last. Words before a call are its thought.
    """
    reader = _TurnReader()
    for number, message in enumerate(messages, start=first):
        at = f"{where}[{number}]"
        role, text = require(message, "role", str, at), read_content(message, at)
        if role == "assistant":
            reader.add_assistant(_prepend_reasoning(message, text), _read_calls(message, at))
        elif role in ("tool", "function"):
            reader.add_response(text, message.get("tool_call_id"), message.get("name"), at, marks_error(message))
        elif role == "user":
            reader.add_user(text)
        elif role in _INSTRUCTING:
            reader.add_note(role, text)
        else:
            raise UnusableError("a message of another role", f"{at}: expected user, assistant or tool, got {role!r}")
    return reader.finish()


class _TurnReader:
    """Puts turns together, message by message."""

    def __init__(self) -> None:
        self._turns: list[RecordedTurn] = []
        self._words: list[str] = []
        """What the assistant has said since its last call."""
        self._waiting: list[tuple[int, str | None]] = []
        """Calls without a response: the number of the turn and the call's id."""

    def add_assistant(self, text: str, calls: Sequence[_Call]) -> None:
        self._words.append(text)
        for name, arguments, call_id in calls:
            self._waiting.append((len(self._turns), call_id))
            self._turns.append(RecordedTurn(join_texts(self._words), name, arguments, None))
            self._words = []

    def add_response(self, text: str, call_id: Any, name: Any, where: str, failed: bool = False) -> None:
        if not self._waiting:
            if not self._close_words(text):
                raise UnusableError("a response without a call", f"{where}: no call before it waits for a response")
            return
        position = self._find_call(call_id, name)
        if position is None:
            calls = ", ".join(f"{self._turns[number].name} ({waits})" for number, waits in self._waiting)
            detail = f"{where}: the response of {name} ({call_id}) belongs to none of the waiting calls {calls}"
            raise UnusableError("a response without a call", detail)
        number, _ = self._waiting.pop(position)
        self._turns[number] = self._turns[number]._replace(observation=text, failed=failed)

    def _find_call(self, call_id: Any, name: Any) -> int | None:
        """Which of the waiting calls a response belongs to: by id, by name, to one without a name, or the first."""
        if call_id:
            for position, (_, waits) in enumerate(self._waiting):
                if waits == call_id:
                    return position
        candidates = [n for n, (_, waits) in enumerate(self._waiting) if not (call_id and waits)]
        names = [self._turns[self._waiting[n][0]].name for n in candidates]
        matches = [n for n, call_name in zip(candidates, names, strict=True) if call_name == name or not name]
        return next(iter(matches or [n for n, call_name in zip(candidates, names, strict=True) if not call_name]), None)

    def add_user(self, text: str) -> None:
        if (turn := self._close_turn()) is None:
            return
        self._turns[-1] = turn._replace(user=text if turn.user is None else turn.user + _GAP + text)

    def add_note(self, role: str, text: str) -> None:
        """Add what the system or a developer says after the last turn."""
        if (turn := self._close_turn()) is not None and text.strip():
            self._turns[-1] = turn._replace(notes=(*turn.notes, (role, text)))

    def _close_turn(self) -> RecordedTurn | None:
        """The last turn, which a message of another role than `tool` follows; None before the assistant has spoken."""
        self._close_words(None)
        if self._turns and self._turns[-1].name == FINISH:  # no response follows
            self._waiting = [(number, call_id) for number, call_id in self._waiting if number < len(self._turns) - 1]
        return self._turns[-1] if self._turns else None

    def finish(self) -> list[RecordedTurn]:
        self._close_words(None)
        for number, _ in self._waiting:
            if not self._turns[number].name:  # no tool could answer it
                self._turns[number] = self._turns[number]._replace(observation="")
        return self._turns

    def _close_words(self, observation: str | None) -> bool:
        """Whether there are words that lead to no call; they become a turn of their own."""
        words, self._words = join_texts(self._words), []
        if words:
            self._turns.append(RecordedTurn("", "", words, observation))
        return bool(words)


def _read_calls(message: dict[str, Any], where: str) -> list[_Call]:
    raw = require(message, "tool_calls", list, where) if message.get("tool_calls") else []
    calls: list[_Call] = [
        (*_read_function(require(call, "function", dict, at), at), call.get("id"))
        for n, call in enumerate(raw)
        for at in [f"{where}.tool_calls[{n}]"]
    ]
    if not calls and message.get("function_call"):
        function = require(message, "function_call", dict, where)
        calls = [(*_read_function(function, f"{where}.function_call"), None)]
    return calls


def _read_function(call: dict[str, Any], where: str) -> tuple[str, str]:
    """Name and arguments. An empty name calls no tool: the call becomes a malformed step."""
    return require(call, "name", str, where).strip(), convert_to_text(call.get("arguments"))


def _prepend_reasoning(message: dict[str, Any], text: str) -> str:
    """The words of the assistant, after what it reasoned in a field of its own."""
    reasoning = read_reasoning(message)
    return join_texts([f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}" if reasoning else "", text])


def read_content(message: dict[str, Any], where: str) -> str:
    """What a message says, its parts of text put together. Raises UnusableError where a part is no text."""
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        return str(message["refusal"])
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return convert_to_text(content)
    if odd := [part["type"] for part in content if part["type"] != "text"]:
        raise UnusableError("content that is no text", f"{where}.content: a part of the type {cut_excerpt(odd[0])}")
    return "".join(require(part, "text", str, f"{where}.content") for part in content)


def _read_opening(messages: Sequence[dict[str, Any]]) -> list[Message]:
    """The messages before the assistant's first turn that say something, those of the user side by side as one."""
    opening: list[Message] = []
    for number, message in enumerate(messages):
        if message["role"] not in _INSTRUCTING:
            detail = f"messages[{number}]: expected {', '.join(_INSTRUCTING)}, got {message['role']!r}"
            raise UnusableError("a message of another role", detail)
        role, text = message["role"], read_content(message, f"messages[{number}]")
        if text.strip() and opening and opening[-1]["role"] == role == "user":
            opening[-1]["content"] = join_texts([opening[-1]["content"], text], _GAP)
        elif text.strip():
            opening.append({"role": role, "content": text})
    if not any(message["role"] == "user" for message in opening):
        raise UnusableError("no instruction", "the user says nothing before the assistant's first turn")
    return opening


def _read_tools(value: dict[str, Any], default_tools: DefaultTools) -> tuple[tuple[ToolSchema, ...], set[str]]:
    """The tools with Finish as the last, and the names that were recorded."""
    name = next((n for n in ("tools", "functions") if value.get(n) is not None), None)
    if name is None:
        return default_tools(), set()
    entries = parse_if_text(value[name], name)
    if not isinstance(entries, list):
        raise UnusableError(f"ill-typed field '{name}'", f"field '{name}': expected a list, got {cut_excerpt(entries)}")
    schemas = read_openai_tools([parse_if_text(tool, f"{name}[{n}]") for n, tool in enumerate(entries)], name)
    return check_and_add_finish(schemas, name), {schema["function"]["name"] for schema in schemas}


def _make_finish(turn: RecordedTurn) -> RecordedTurn:
    """Words without a call as a Finish that answers with them, after what was thought.

    Words that a tool answered stay a call gone wrong, and thoughts that never end stay words.
    """
    if turn.name or turn.observation is not None:
        return turn
    thought, answer = _split_thinking(turn.arguments)
    if THINK_OPEN in answer and THINK_CLOSE not in answer:
        return turn
    arguments = json.dumps({"return_type": GIVE_ANSWER, "final_answer": answer}, ensure_ascii=False)
    return turn._replace(thought=join_texts([turn.thought, thought]), name=FINISH, arguments=arguments)


def _split_thinking(words: str) -> tuple[str, str]:
    """The text up to the last end of thinking, its tags included, and the rest."""
    thought, close, answer = words.rpartition(THINK_CLOSE)
    return (thought + close).strip(), answer.strip() if close else answer


def _read_verdict(value: dict[str, Any]) -> float | None:
    solved = value.get("solved")
    if solved is None or solved != solved:  # tables write NaN for what is missing
        return None
    if not isinstance(solved, int | float) or not 0 <= solved <= 1:
        raise UnusableError("ill-typed field 'solved'", f"field 'solved': expected 0 to 1, got {cut_excerpt(solved)}")
    return float(solved)
