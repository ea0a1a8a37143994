"""Tool calls as text: Hermes' <tool_call>, Llama 3.1's JSON object, ReAct's Action and Action Input.

What a call is, in every format: the end of a turn. Nothing but white space follows it, so that what stands in quotation
marks, brackets, fences or tags that close after it is none. A turn makes one call. Thinking (<think> to </think> at the
beginning of the turn) is not searched for calls; where it is not closed, there is none. A turn that writes an
observation before its call has none either: the assistant has made up what a tool says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from steptool.chat.calls import read_call, read_first_json, read_json, write_json
from steptool.records import ToolCall

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_RESPONSE_OPEN, _RESPONSE_CLOSE = "<tool_response>", "</tool_response>"
_KEYWORDS = "Action Input|Action|Observation"
_KEYWORD = re.compile(rf"(?:\A\s*|^)({_KEYWORDS}):", re.MULTILINE)
_ACTION = re.compile(r"Action:([^\n]*)\n(?:\s*\n)?Action Input:(.*)", re.DOTALL)
_TO_QUOTE = re.compile(rf"^(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)
_QUOTED = re.compile(rf"^\\(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)


class ChatFormat(StrEnum):
    """How calls stand in a text."""

    HERMES = "hermes"
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, of Hermes and Qwen."""
    LLAMA = "llama"
    """{"name": ..., "parameters": {...}}, of Llama 3.1; or the same after some text and <|python_tag|>."""
    REACT = "react"
    """Lines of "Action: name" and "Action Input: {...}", after a "Thought: ..."."""


@dataclass(frozen=True)
class ParsedTurn:
    """What an assistant turn says: its call, or why there is none."""

    call: ToolCall | None
    text: str
    """The whole turn without its end-of-turn token."""
    problem: str = ""
    """Why no call could be read, in few words for the model; empty when there is a call."""
    thought: str = ""
    """Text before the call, without white space around it; empty when there is no call."""


@dataclass(frozen=True)
class Format:
    """One way to write and to read calls."""

    name: ChatFormat
    form: str
    """What a turn with a call looks like, to be shown to a model."""
    observation: tuple[str, str]
    """What stands around a tool's answer where it is told by the user."""
    marks: tuple[str, ...]
    """Text that opens or closes a call: no user or tool may write it."""
    write: Callable[[ToolCall, str], str]
    """The text of a call and the thought before it, unchecked."""
    read: Callable[[str, int], tuple[int, ToolCall]]
    """Where the call of a turn begins, and the call, from a text and where its thinking ends. Raises ValueError."""
    thought: Callable[[str], str] = str
    """The thought, from the text before the call."""

    def render(self, call: ToolCall, thought: str = "") -> str:
        """The text of a turn that makes a call after an optional thought; white space around the thought is lost.

        Raises ValueError where the text would not be read back as this call and thought.
        """
        text = self.write(call, thought.strip())
        read = self.parse(text)
        if read.call != ToolCall(call.name, dict(call.arguments)) or read.thought != thought.strip():
            raise ValueError(
                f"the format '{self.name}' cannot carry the call of {call.name!r} with the thought {thought[:200]!r}: "
                f"it would be read as {read.problem or (read.call, read.thought)}"
            )
        return text

    def parse(self, text: str) -> ParsedTurn:
        """Read the one call of a turn. Any text is accepted: what cannot be read comes back with its problem."""
        try:
            begin, call = self.read(text, _after_thinking(text))
        except ValueError as error:
            return ParsedTurn(None, text, str(error))
        return ParsedTurn(call, text, thought=self.thought(text[:begin].strip()))


def _after_thinking(text: str) -> int:
    if not text.lstrip().startswith(THINK_OPEN):
        return 0
    end = text.find(THINK_CLOSE)
    if end < 0:
        raise ValueError("thinking not closed")
    return end + len(THINK_CLOSE)


def _no_response(text: str) -> None:
    if _RESPONSE_OPEN in text:
        raise ValueError("a tool's response before the tool call")


def _write_hermes(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "arguments": dict(call.arguments)}, HERMES.marks)
    text = f"{CALL_OPEN}{body}{CALL_CLOSE}"
    return f"{thought}\n{text}" if thought else text


def _read_hermes(text: str, start: int) -> tuple[int, ToolCall]:
    """The call between the tags; or a turn that is one JSON object, as some models leave the tags out."""
    begin = text.find(CALL_OPEN, start)
    if begin < 0 and CALL_CLOSE not in text[start:]:
        return _bare(text, start)
    if begin < 0 or CALL_CLOSE not in text[begin:]:
        raise ValueError("tool call not closed")
    _no_response(text[start:begin])
    body = text[begin + len(CALL_OPEN) :].lstrip()
    value, end = read_first_json(body)
    rest = body[end:].lstrip()
    if not rest.startswith(CALL_CLOSE):
        raise ValueError("tool call not closed")
    if CALL_OPEN in rest:
        raise ValueError("more than one tool call")
    if rest.removeprefix(CALL_CLOSE).strip():
        raise ValueError("text after the tool call")
    return begin, read_call(value)


def _bare(text: str, start: int) -> tuple[int, ToolCall]:
    if not text[start:].lstrip().startswith("{"):
        raise ValueError("no tool call")
    return start, read_call(read_json(text[start:]))


def _write_llama(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "parameters": dict(call.arguments)}, LLAMA.marks)
    return f"{thought}{PYTHON_TAG}{body}" if thought else body


def _read_llama(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(PYTHON_TAG, start)
    if begin < 0 or text[start:].lstrip().startswith("{"):
        return _bare(text, start)
    _no_response(text[start:begin])
    return begin, read_call(read_json(text[begin + len(PYTHON_TAG) :]))


def _write_react(call: ToolCall, thought: str) -> str:
    said = "Thought: " + _TO_QUOTE.sub(r"\\", thought) + "\n" if thought else ""
    return f"{said}Action: {call.name}\nAction Input: {write_json(dict(call.arguments))}"


def _read_react(text: str, start: int) -> tuple[int, ToolCall]:
    """Keywords count at the beginning of a line, and of the turn. The input is one JSON object up to the turn's end."""
    keyword = _KEYWORD.search(text, start)
    if not keyword:
        raise ValueError("no tool call")
    if keyword[1] != "Action":
        raise ValueError(f"'{keyword[1]}:' before 'Action:'")
    action = _ACTION.fullmatch(text, keyword.start(1))
    if not action:
        raise ValueError("'Action:' without 'Action Input:' in the next line")
    return keyword.start(1), read_call({"name": action[1].strip(), "arguments": read_json(action[2])})


def _thought_react(text: str) -> str:
    return _QUOTED.sub("", text.removeprefix("Thought:").strip())


HERMES = Format(
    ChatFormat.HERMES,
    '<tool_call>{"name": <name of the tool>, "arguments": <object>}</tool_call>',
    (f"{_RESPONSE_OPEN}\n", f"\n{_RESPONSE_CLOSE}"),
    (CALL_OPEN, CALL_CLOSE),
    _write_hermes,
    _read_hermes,
)
LLAMA = Format(
    ChatFormat.LLAMA,
    '{"name": <name of the tool>, "parameters": <object>}',
    (f"{_RESPONSE_OPEN}\n", f"\n{_RESPONSE_CLOSE}"),
    (PYTHON_TAG,),
    _write_llama,
    _read_llama,
)
REACT = Format(
    ChatFormat.REACT,
    "Thought: <what you know and what to do next>\nAction: <name of the tool>\nAction Input: <object>",
    ("Observation: ", ""),
    (),
    _write_react,
    _read_react,
    _thought_react,
)
FORMATS = {f.name: f for f in (HERMES, LLAMA, REACT)}

render = HERMES.render
"""A call in Hermes' form, which the embedded model speaks."""
parse_hermes = HERMES.parse
"""Read a turn in Hermes' form."""
