"""What every chat format has in common: how a turn is read, what counts as a call, and how a task ends.

A task ends by a call of the tool Finish, or by an answer in a turn without a call, as agents in production do.
`rollout.finish` says which of the two a model sees and makes. Records hold a Finish as the last step either way, so
that annotators, rewards and reports need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from steptool.chat.messages import (
    FINISH_SCHEMA,
    GIVE_ANSWER,
    make_call_message,
    make_tool_message,
    read_call,
    read_calls,
    read_json,
    read_text,
    write_json,
)
from steptool.config import FinishMode
from steptool.records import FINISH, Message, ToolCall, ToolSchema

_PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""Chat templates that print a value with Jinja's `string` write these words of Python."""
WriteAnswer = Callable[[str, str], str]
"""Text of a turn, from an answer and the thought before it."""


def write_value(value: Any) -> str:
    """A value as bare text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else write_json(value)


def read_arguments(call: ToolCall, tools: Sequence[ToolSchema]) -> dict[str, Any]:
    """The arguments of a call whose values are bare text, with the types that the tool's schema declares."""
    functions = (tool["function"] for tool in tools)
    parameters = next((f.get("parameters") for f in functions if f.get("name") == call.name), None)
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    schemas = properties if isinstance(properties, Mapping) else {}
    return {name: _read_value(text, schemas.get(name)) for name, text in call.arguments.items()}


def _read_value(text: str, schema: Any) -> Any:
    """A value from its text. What cannot be read as the declared type stays text, and fails the schema later."""
    types = set(_list_types(schema))
    if types == {"string"}:
        return text
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        value = read_json(text)
    except ValueError:
        return text
    # Without a declared type, or with several, a JSON string in quotation marks is text that holds them.
    return text if isinstance(value, str) and (not types or "string" in types) else value


def _list_types(schema: Any) -> Iterator[str]:
    """The JSON types that a schema allows, as far as it names them; empty where it names none."""
    if not isinstance(schema, Mapping):
        return
    declared = schema.get("type")
    yield from [declared] if isinstance(declared, str) else declared if isinstance(declared, list) else []
    if "type" not in schema and isinstance(schema.get("enum"), list):
        yield from {"string" if isinstance(value, str) else "other" for value in schema["enum"]}
    for word in ("anyOf", "oneOf"):
        for part in schema.get(word) or [] if isinstance(schema.get(word), list) else []:
            yield from _list_types(part)


CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<tool_response>", "</tool_response>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
RESPONSE = (f"{RESPONSE_OPEN}\n", f"\n{RESPONSE_CLOSE}")
"""What stands around a tool's answer in most formats."""


class ChatFormat(StrEnum):
    """How calls stand in a text."""

    HERMES = "hermes"
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, of Hermes, Qwen 2.5 and Qwen 3."""
    LLAMA = "llama"
    """{"name": ..., "parameters": {...}}, of Llama 3.1; or the same after some text and <|python_tag|>."""
    QWEN_XML = "qwen_xml"
    """<tool_call><function=...><parameter=...>...</parameter></function></tool_call>, of Qwen 3.5 and Nemotron 3."""
    GLM = "glm"
    """<tool_call>name, then <arg_key> and <arg_value>, of GLM 4.5 and later."""
    DEEPSEEK = "deepseek"
    """<｜tool▁call▁begin｜>, name and JSON, of DeepSeek V3 and R1."""
    GPT_OSS = "gpt_oss"
    """A message to functions.name in the channel commentary, of gpt-oss."""
    MISTRAL = "mistral"
    """[TOOL_CALLS] and a JSON list, or a name, [ARGS] and a JSON object, of Mistral."""
    REACT = "react"
    """Lines of "Action: name" and "Action Input: {...}", after a "Thought: ..."."""


class NoCallError(ValueError):
    """A turn that does not try to make a call."""

    def __init__(self) -> None:
        super().__init__("no tool call")


@dataclass(frozen=True)
class ParsedTurn:
    """The call of an assistant turn, or why the turn has no call."""

    call: ToolCall | None
    text: str
    """The whole turn without its end-of-turn token."""
    problem: str = ""
    """Why no call could be read, in few words for the model; empty when there is a call."""
    thought: str = ""
    """Text before the call, without white space around it; empty when there is no call."""
    answer: str | None = None
    """What a turn that does not try to make a call tells the user, its thinking left out; None for any other turn."""


def write_answer(answer: str, thought: str) -> str:
    """The answer after its thinking. Other words before it would become a part of it, and are left out."""
    is_thinking = thought.startswith(THINK_OPEN) and thought.endswith(THINK_CLOSE)
    return f"{thought}\n\n{answer}" if is_thinking else answer


def _read_answer(text: str) -> str | None:
    return text


@dataclass(frozen=True)
class Format:
    """One way to write and to read calls."""

    name: ChatFormat
    form: str
    """A turn with a call as a pattern, to be shown to a model."""
    observation: tuple[str, str]
    """What stands around a tool's answer where the user's message holds it."""
    marks: tuple[str, ...]
    """Text that opens or closes a call: no user or tool may write it."""
    write: Callable[[ToolCall, str], str]
    """The text of a call and the thought before it, unchecked."""
    read: Callable[[str, int], tuple[int, ToolCall]]
    """Where the call of a turn begins, and the call, from a text and where its thinking ends. Raises ValueError."""
    thought: Callable[[str], str] = str
    """The thought, from the text before the call."""
    textual: bool = False
    """Whether `read` gives every argument as its bare text, whose type the tool's schema decides."""
    final_form: str = ""
    """Words that say to a model how a turn without a call gives its answer, where text alone is not enough."""
    write_answer: Callable[[str, str], str] = write_answer
    """The text of a turn without a call, from its answer and the thought before it, unchecked."""
    read_answer: Callable[[str], str | None] = _read_answer
    """The answer in a turn without a call, from its text after its thinking; None where it gives none."""

    def render(self, call: ToolCall, thought: str = "", tools: Sequence[ToolSchema] = ()) -> str:
        """The text of a turn that makes a call after an optional thought; white space around the thought is lost.

        Raises ValueError where the text would not be read back as this call and thought.
        """
        text = self.write(call, thought.strip())
        turn = self.parse(text, tools)
        same = turn.call == ToolCall(call.name, dict(call.arguments)) and turn.thought == thought.strip()
        if not same or (self.textual and self._holds_mark(call)):
            raise ValueError(
                f"the format '{self.name}' cannot carry the call of {call.name!r} with the thought {thought[:200]!r}: "
                f"it would be read as {turn.problem or (turn.call, turn.thought)}"
            )
        return text

    def render_answer(self, answer: str, thought: str = "") -> str:
        """The text of a turn that answers without a call. White space around the answer is lost.

        Of the thought it keeps what is thinking between tags, or has a place of its own in the format. Raises
        ValueError where the text would not be read back as this answer.
        """
        text = self.write_answer(answer.strip(), thought.strip())
        turn = self.parse(text)
        if turn.answer != answer.strip():
            raise ValueError(
                f"the format '{self.name}' cannot carry the answer {answer[:200]!r}: it would be read as "
                f"{turn.call or turn.answer or turn.problem}"
            )
        return text

    def parse(self, text: str, tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Read the one call of a turn. Any text is accepted: what cannot be read comes back with its problem.

        `tools` decide the types of arguments that the format writes as bare text.
        """
        start = 0
        try:
            start = _end_of_thinking(text)
            begin, call = self.read(text, start)
            if self.textual:
                call = read_call({"name": call.name, "arguments": read_arguments(call, tools)})
        except NoCallError as error:
            answer = self.read_answer(text[start:])
            return ParsedTurn(None, text, str(error), answer=None if answer is None else answer.strip())
        except ValueError as error:
            return ParsedTurn(None, text, str(error))
        return ParsedTurn(call, text, thought=self.thought(text[:begin].strip()))

    def _holds_mark(self, call: ToolCall) -> bool:
        values = [value if isinstance(value, str) else write_json(value) for value in call.arguments.values()]
        return any(mark in text for mark in self.marks for text in (call.name, *call.arguments, *values))


def strip_thinking(text: str) -> str:
    """What a turn says after its thinking, without white space around it. Raises ValueError if the thinking does not
    end."""
    return text[_end_of_thinking(text) :].strip()


def refuse_response(text: str) -> None:
    """Raise ValueError where the text before a call holds a tool's answer."""
    if RESPONSE_OPEN in text:
        raise ValueError("a tool's response before the tool call")


def read_bare_object(text: str, start: int) -> tuple[int, ToolCall]:
    """The call of a turn that is one JSON object, as some models leave the tags out. Raises ValueError."""
    if not text[start:].lstrip().startswith("{"):
        raise NoCallError
    return start, read_call(read_json(text[start:]))


def read_between_tags(text: str, start: int) -> tuple[int, str]:
    """Where the one <tool_call> of a turn begins, and the text in it. Raises ValueError unless it ends the turn."""
    begin = text.find(CALL_OPEN, start)
    if begin < 0 and CALL_CLOSE not in text[start:]:
        raise NoCallError
    if begin < 0 or CALL_CLOSE not in text[begin:]:
        raise ValueError("tool call not closed")
    refuse_response(text[start:begin])
    body, _, rest = text[begin + len(CALL_OPEN) :].rpartition(CALL_CLOSE)
    if CALL_OPEN in body:
        raise ValueError("more than one tool call")
    if rest.strip():
        raise ValueError("text after the tool call")
    return begin, body


def _end_of_thinking(text: str) -> int:
    if not text.lstrip().startswith(THINK_OPEN):
        return 0
    end = text.find(THINK_CLOSE)
    if end < 0:
        raise ValueError("thinking not closed")
    return end + len(THINK_CLOSE)


def offers_finish(tools: Iterable[ToolSchema]) -> bool:
    """Whether the tool Finish is among the tools."""
    return any(tool["function"]["name"] == FINISH for tool in tools)


def offer_tools(tools: Sequence[ToolSchema], mode: FinishMode) -> list[ToolSchema]:
    """The tools that a model sees: with Finish (as the last one, where it is missing), or with text without it."""
    other_tools = [tool for tool in tools if tool["function"]["name"] != FINISH]
    if mode == "text":
        return other_tools
    return list(tools) if len(other_tools) < len(tools) else [*other_tools, FINISH_SCHEMA]


def make_finish(answer: str) -> ToolCall:
    """The Finish that an answer in text stands for. A text never gives up: an empty answer counts as an answer."""
    return ToolCall(FINISH, {"return_type": GIVE_ANSWER, "final_answer": answer})


def read_answer(call: ToolCall) -> str | None:
    """The answer in text that stands for a Finish: empty where it gives up, None where its arguments do not fit it."""
    kind, answer = call.arguments.get("return_type"), call.arguments.get("final_answer")
    if isinstance(kind, str) and kind.startswith("give_up"):
        return ""
    return answer if kind == GIVE_ANSWER and isinstance(answer, str) else None


def to_text_answers(messages: Sequence[Message], write: WriteAnswer = write_answer) -> list[Message]:
    """A conversation whose calls of Finish are answers in text; the empty responses to them are left out.

    `write` makes the text, as a chat format does. A Finish that ended nothing stays a call that failed: its arguments
    do not fit it, or the assistant goes on without a word of the user, as where no Finish was offered.
    """
    turns: list[Message] = []
    follows_answer = False
    for position, message in enumerate(messages):
        call = next(iter(read_calls(message)), None)
        answer = read_answer(call) if call and call.name == FINISH else None
        if answer is not None and _assistant_goes_on(messages[position + 1 :]):
            answer = None
        if answer is not None:
            turns.append({"role": "assistant", "content": write(answer, read_text(message))})
        elif not (follows_answer and message["role"] == "tool"):
            turns.append(message)
        follows_answer = answer is not None
    return turns


def _assistant_goes_on(following: Sequence[Message]) -> bool:
    """Whether the next turn is the assistant's, after the answers of tools alone."""
    return next((message["role"] for message in following if message["role"] != "tool"), "") == "assistant"


def to_finish_calls(messages: Sequence[Message]) -> list[Message]:
    """A conversation whose answers in text are calls of Finish, each with an empty response where something follows."""
    turns: list[Message] = []
    for message in messages:
        if message["role"] == "assistant" and not message.get("tool_calls"):
            turns += [make_call_message(make_finish(read_text(message))), make_tool_message(FINISH, "")]
        else:
            turns.append(message)
    return turns
