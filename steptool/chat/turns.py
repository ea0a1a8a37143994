"""The assistant's turns as a chat template writes them: their text, what ends them, and what stands between them.

A template is examined by trying: it renders small conversations that hold a mark, and the text around the mark shows
how it writes turns. For a template that knows no tools, a conversation becomes text alone: calls stand in the
assistant's text as the format writes them, and the user says what the tools answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile

from steptool.chat.call_format import THINK_CLOSE, THINK_OPEN, Format
from steptool.chat.formats import FORMATS, REACT
from steptool.chat.messages import (
    NO_CALL,
    make_call_message,
    make_tool_message,
    read_calls,
    read_text,
    split_calls,
    write_json,
)
from steptool.chat.template import ChatTemplate
from steptool.records import FINISH, Message, ToolCall, ToolSchema

_ESCAPE = "\\"
_GAP = "\n\n"


def to_text(messages: Sequence[Message], form: Format, tools: Sequence[ToolSchema] = ()) -> list[Message]:
    """The conversation as messages of role and content, one call in each assistant message.

    A user's own message that looks like an answer of a tool gets a backslash before it. Raises ValueError where the
    format cannot carry a call or a thought, and where an assistant's text would be read as a call.
    """
    return [_to_text(message, form, tools) for message in split_calls(messages)]


def from_text(messages: Sequence[Message], form: Format, tools: Sequence[ToolSchema] = ()) -> list[Message]:
    """The internal form of a conversation of text: the inverse of `to_text`.

    An assistant's text without a well-formed call stays text. A tool's answer gets the name of the call before it.
    """
    turns, tool_name = [], NO_CALL
    before, after = form.observation
    for message in messages:
        text = read_text(message)
        if message["role"] == "assistant":
            turn = form.parse(text, tools)
            tool_name = turn.call.name if turn.call else NO_CALL
            turns.append(make_call_message(turn.call, turn.thought) if turn.call else message)
        elif message["role"] != "user":
            turns.append(message)
        elif text.startswith(before) and text.endswith(after) and len(text) >= len(before + after):
            turns.append(make_tool_message(tool_name, text[len(before) : len(text) - len(after)]))
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
    if not any(tool["function"]["name"] == FINISH for tool in tools):
        text += f"\n\nOnce the task is done, answer in a turn without a call{form.final_form}."
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
        parts.insert(0, read_text(messages[0]))
        messages = messages[1:]
    return [{"role": role, "content": _GAP.join(parts)}, *messages] if parts else list(messages)


def join_user_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages, in which adjacent messages of the user are joined into one, as many templates want it."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"] == "user":
            turns[-1] = {**turns[-1], "content": turns[-1]["content"] + _GAP + message["content"]}
        else:
            turns.append(message)
    return turns


def _to_text(message: Message, form: Format, tools: Sequence[ToolSchema]) -> Message:
    role, text, (before, after) = message["role"], read_text(message), form.observation
    if role == "assistant":
        calls = read_calls(message)
        return {"role": role, "content": form.render(calls[0], text, tools) if calls else _require_no_call(text, form)}
    if role == "tool":
        return {"role": "user", "content": f"{before}{text}{after}"}
    looks_like_answer = role == "user" and text.lstrip(_ESCAPE).startswith(before)
    return {"role": role, "content": f"{_ESCAPE}{text}" if looks_like_answer else text}


def _require_no_call(text: str, form: Format) -> str:
    if form.parse(text).call:
        raise ValueError(
            f"an assistant message without tool_calls would be read as a call: {text[:200]!r}; read such conversations "
            "with steptool.chat.turns.from_text first"
        )
    return text


CALL_ID = "call00000"
"""Id of every call, since some templates ask for one. Answers follow their call."""
_MARK, _OTHER = "codecprobe", "probecodec"
PROBE = make_call_message(ToolCall(_MARK, {"x": _MARK}))
"""A call that every usable template and format can carry."""
_SYSTEMS = ("system", "developer")
_USER: Message = {"role": "user", "content": "?"}
_SPOKEN: Message = {"role": "assistant", "content": _MARK}
_SYSTEM: Message = {"role": "system", "content": _MARK}
_ANSWER: Message = {**make_tool_message(_MARK, _OTHER), "tool_call_id": CALL_ID}
_EMPTY_THINKING = re.compile(rf"\s*{THINK_OPEN}\s*{THINK_CLOSE}\s*")
_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": _MARK,
        "description": "?",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "?"}}},
    },
}


class TurnRenderer:
    """Writes and reads the assistant's turns for one template and format.

    `native` says whether the template writes the calls itself; otherwise it gets messages of text alone. Raises
    ValueError for a template whose turns have no end, or do not begin with their own prompt.
    """

    def __init__(self, template: ChatTemplate, form: Format, *, native: bool, json_arguments: bool) -> None:
        self._template, self._form, self._native, self._json_arguments = template, form, native, json_arguments
        self._opening = template.render([_USER], prompt=True)
        self._tails: dict[str, str] = {}
        # Where the template has no system messages, the user describes the tools.
        self.shows_tools = native and _MARK in template.try_render([_USER], [_TOOL])
        self.system_role = "system" if _MARK in template.try_render([_SYSTEM, _USER]) else "user"
        self.end_token, self._writes_end = self._find_end()
        self.answer_end = self._find_answer_end()
        last = template.find_last_control_token(self._opening)
        self.prompt_tail = self._opening[self._opening.rindex(last) :] if last else self._opening
        self._lead = "" if native else self._render_body(_SPOKEN)[0].partition(_MARK)[0]
        self._thinks = _opens_thinking(self._opening)
        self._always_thinks = self._thinks and _opens_thinking(self.render_between([self._make_answer()], _MARK))

    def write(self, message: Message, tools: Sequence[ToolSchema] = (), *, first: bool = True) -> str:
        """The text of a turn from the end of its prompt to its end token. `first`: the first turn of the episode."""
        turn = _add_id(message, self._json_arguments)
        if self._native:
            text, end = self._render_body(turn)
            text += end or (self.end_token if read_calls(message) else self.answer_end)
        else:
            (turn,) = to_text([_add_id(message)], self._form, tools)
            text = self._lead + read_text(turn) + self.end_token
        if self._thinks and not self._always_thinks and not first:
            return text.removeprefix(f"\n{THINK_CLOSE}\n\n")
        return text

    def read(self, text: str) -> str:
        """A sampled turn as the format reads it.

        Thinking that the prompt has opened gets its opening tag. A header that the model writes before its text, such
        as a channel, is left out with all that stands before it.
        """
        if self._always_thinks or (self._thinks and THINK_CLOSE in text):
            return f"{THINK_OPEN}{text}"
        header = self._lead.strip()
        return text.rpartition(header)[2] if header and THINK_CLOSE not in header else text

    def render_between(self, messages: Sequence[Message], tool_name: str) -> str:
        """Text from the end of a turn to the beginning of the next one, where these messages stand between them."""
        stub = self._make_stub(tool_name) if messages[0]["role"] == "tool" else _SPOKEN
        text_after = self._find_rest(stub, self._template.render([_USER, stub, *messages], prompt=True))
        end = self._template.find_first_control_token(text_after) if self._writes_end else ""
        return text_after.partition(end)[2] if end else text_after

    @cached_property
    def _takes_several_systems(self) -> bool:
        """Whether the template shows more than one system message at the beginning."""
        text = self._template.try_render([_SYSTEM, {**_SYSTEM, "content": _OTHER}, _USER])
        return _MARK in text and _OTHER in text

    @cached_property
    def _takes_late_systems(self) -> bool:
        """Whether the template shows a system message in its place behind a turn, and not at the beginning."""
        try:
            return _OTHER in self.render_between([{**_SYSTEM, "content": _OTHER}, _USER], "")
        except ValueError:
            return False

    def place_systems(self, messages: Sequence[Message], *, at_beginning: bool) -> list[Message]:
        """The messages with those of the system and of developers as the template takes them.

        Several at the beginning become one where it takes one alone. Where it takes none, the user says their text, in
        one message with what the user says beside it.
        """
        head = list(takewhile(lambda message: message["role"] in _SYSTEMS, messages if at_beginning else ()))
        rest = messages[len(head) :]
        if len(head) > 1 and self.system_role == "system" and not self._takes_several_systems:
            head = [{**head[0], "content": _GAP.join(read_text(message) for message in head)}]
        placed: list[Message] = []
        is_moved = False
        for number, message in enumerate([*head, *rest]):
            late, was_moved = number >= len(head), is_moved
            is_moved = message["role"] in _SYSTEMS and (
                not self._takes_late_systems if late else self.system_role == "user"
            )
            turn = {**message, "role": "user"} if is_moved else message
            if placed and placed[-1]["role"] == turn["role"] == "user" and (is_moved or was_moved):
                placed[-1] = {**placed[-1], "content": placed[-1]["content"] + _GAP + turn["content"]}
            else:
                placed.append(turn)
        return placed

    def check(self) -> None:
        """Raise ValueError where the template leaves out or changes text, or what tools answer."""
        if _OTHER not in self.render_between([self._make_answer()], _MARK):
            kind = "tool messages" if self._native else "messages of text"
            raise ValueError(f"the chat template does not render {kind}; use the model's template for tool calling")
        if not self._native:
            (turn,) = to_text([PROBE], self._form)
            if read_text(turn) not in self._template.render([_USER, turn]):
                raise ValueError(f"the chat template changes the text of a turn, as in {read_text(turn)!r}")

    def check_that_react_fits(self) -> None:
        """Raise ValueError for a template with calls of its own that no format reads, or one that shows only tools."""
        text = self._template.try_render([_USER, _add_id(PROBE)])
        if _MARK in text:
            raise ValueError(
                f"the chat template writes calls in a form that cannot be read: {text[-200:]!r}. Set "
                "policy.chat_format to react to use plain text instead"
            )
        if _MARK in self._template.try_render([_USER], [_TOOL]):
            raise ValueError(
                "the chat template does not render tool calls; use the model's tool-calling template, or set "
                "policy.chat_format to react to use plain text"
            )

    def _make_stub(self, name: str) -> Message:
        """A turn that stands before the answer of the tool of that name."""
        return (
            _add_id(make_call_message(ToolCall(name, {"x": _MARK})), self._json_arguments) if self._native else _SPOKEN
        )

    def _make_answer(self) -> Message:
        return _ANSWER if self._native else to_text([_ANSWER], self._form)[0]

    def _find_end(self) -> tuple[str, bool]:
        """The token that ends a turn, and whether the template writes it.

        It is the control token behind the turn, or the one with which the next message begins. Where a template of text
        writes neither, the model ends its turn with the eos token.
        """
        stub = self._make_stub(_MARK)
        text = self._template.render([_USER, stub])
        if _MARK not in text:
            raise ValueError(f"the chat template does not render an assistant's turn: {text!r}")
        tail = text[text.rindex(_MARK) + len(_MARK) :].rstrip()
        if end := self._find_final_token(tail):
            return end, True
        follower = self._make_answer() if self._native else {"role": "user", "content": _OTHER}
        following = "" if tail and not self._native else self._template.try_render([_USER, stub, follower])
        if following and (token := self._template.find_first_control_token(self._find_rest(stub, following))):
            return token, True
        if self._template.eos_token and not self._native and not tail:
            return self._template.eos_token, False
        raise ValueError(
            f"the chat template must end an assistant turn with one special token, but ends it with {tail[-20:]!r} "
            f"(rendered: {text!r}); add that text to the tokenizer as one special token"
        )

    def _find_answer_end(self) -> str:
        """The token that ends a turn without a call.

        It differs from that of a turn with a call where turns end with the first token of the next message: that is
        the user's message, and not a tool's.
        """
        if not (self._native and self._writes_end) or self._find_final_token(
            self._template.render([_USER, _SPOKEN]).rstrip()
        ):
            return self.end_token
        following = self._template.try_render([_USER, _SPOKEN, {"role": "user", "content": _OTHER}])
        return (
            following and self._template.find_first_control_token(self._find_rest(_SPOKEN, following))
        ) or self.end_token

    def _find_final_token(self, text: str) -> str:
        """The control token at the end of a turn's text that is no part of a call or of thinking; empty without one."""
        token = self._template.find_last_control_token(text)
        belongs = token in self._form.marks or token in (THINK_OPEN, THINK_CLOSE)
        return token if token and text.rstrip().endswith(token) and not belongs else ""

    def _find_rest(self, stub: Message, text: str) -> str:
        """The text behind a turn. Only its end counts: some templates rewrite a turn once it is not the last."""
        key = json.dumps(stub)
        if key not in self._tails:
            alone = self._template.render([_USER, stub]).rstrip()
            self._tails[key] = alone[alone.rindex(_MARK) :].removesuffix(self._find_final_token(alone))
        tail = self._tails[key]
        _, separator, rest = text.partition(tail)
        if not separator:
            raise ValueError(f"the chat template writes a turn in another way once messages follow it: {text!r}")
        return rest

    def _render_body(self, turn: Message) -> tuple[str, str]:
        """The text of a turn from the end of its prompt, without its end token, and that token if there is one."""
        text = self._template.render([_USER, turn])
        if text.startswith(self._opening):
            body = text[len(self._opening) :]
        else:
            head, think, tail = self._opening.rpartition(THINK_OPEN)
            if not think or not text.startswith(head):
                raise ValueError(
                    "the chat template changes what stands before a turn once the turn is made, so that no prompt is a "
                    f"prefix of its episode (prompt: {self._opening[-80:]!r}, episode: {text[-80:]!r})"
                )
            body = _EMPTY_THINKING.sub("", text[len(head) :], count=1)
            body = body if THINK_CLOSE in tail else f"\n{THINK_CLOSE}\n\n{body}"
        end = self._find_final_token(body)
        return (body[: body.rindex(end)], end) if end else (body.rstrip("\n"), "")


def find_native_format(template: ChatTemplate) -> tuple[Format | None, bool]:
    """The format in which a template itself writes a call, and whether it wants the arguments as JSON text."""
    opening = template.render([_USER], prompt=True)
    for json_arguments in (False, True):
        text = template.try_render([_USER, _add_id(PROBE, json_arguments)])
        head = opening if text.startswith(opening) else opening.rpartition(THINK_OPEN)[0]
        if not head or not text.startswith(head):
            continue
        turn = text[len(head) :].rstrip()
        for form in (form for form in FORMATS.values() if form is not REACT):
            end = template.find_last_control_token(turn)
            call = form.parse(turn if end in form.marks else turn.removesuffix(end)).call
            if read_calls(PROBE) == [call]:
                return form, json_arguments
    return None, False


def _opens_thinking(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINK_OPEN)


def _add_id(message: Message, json_arguments: bool = False) -> Message:
    """The message with the id that some templates ask for, which ties a call to its answer."""
    calls = read_calls(message)
    if len(calls) > 1:
        raise ValueError(
            f"an assistant turn makes one call, got {len(calls)}; split it with steptool.chat.messages.split_calls"
        )
    if not calls:
        return {k: v for k, v in message.items() if k != "tool_calls"}
    turn = {**message, **make_call_message(calls[0], read_text(message))}
    (call,) = turn["tool_calls"]
    if json_arguments:
        function = {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}
        call = {**call, "function": function}
    return {**turn, "tool_calls": [{"id": CALL_ID, **call}]}
