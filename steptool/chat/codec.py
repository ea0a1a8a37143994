"""Between messages and tokens, for any Hugging Face tokenizer with a chat template.

An episode is the prompt's tokens, then in turn the sampled tokens of the assistant and the tokens between its
end-of-turn token and its next first token. Each part is tokenised on its own and never again, so that what is trained
on is what was sampled, and supervised examples are cut exactly like episodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from steptool.chat import plain
from steptool.chat.formats import FORMATS, HERMES, LLAMA, REACT, ChatFormat, Format, ParsedTurn
from steptool.chat.messages import call_message, calls_of, text_of, tool_message
from steptool.chat.tools import model_schemas
from steptool.records import Message, ToolCall, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
"""The format in which the chat template writes calls; ReAct where it knows neither tools nor calls."""
_MARK = "codecprobe"
_OTHER = "probecodec"
_CALL_ID = "call00000"
_LLAMA_END = "<|eom_id|>"
"""Ends a turn of Llama 3.1 that calls a tool after <|python_tag|>."""
_USER: Message = {"role": "user", "content": "?"}
_TOLD: Message = {"role": "system", "content": _MARK}
_SPOKEN: Message = {"role": "assistant", "content": _MARK}
_PROBE_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": _MARK,
        "description": "?",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "?"}}},
    },
}


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens: `input_ids` [L] int32 and the spans [start, end) of the assistant's tokens in it.

    A span includes the end-of-turn token. The sequence ends with the last span.
    """

    input_ids: npt.NDArray[np.int32]
    spans: tuple[tuple[int, int], ...]


class ChatCodec:
    """Messages to tokens and sampled tokens to calls.

    `end_ids` are the tokens that end an assistant's turn: the chat template's, the tokenizer's and those given, which
    are the ones that the model's generation configuration names.

    `chat_format` is "auto" or the name of a format. Where the chat template does not write calls in that format, it is
    given messages of plain text (`steptool.chat.plain`), and `native` is false.

    Raises ValueError where the chat template cannot be used: no template, tools or tool messages not rendered, calls in
    a form that no format reads, no single token that ends a turn, or a turn rendered differently once others follow it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_format: str = AUTO, end_ids: Iterable[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template; set tokenizer.chat_template to one that renders tools"
            )
        self.end_token, self.end_id = self._find_end()
        own = self._own_format()
        self.format = self._auto_format(own) if chat_format == AUTO else FORMATS[ChatFormat(chat_format)]
        self.native = self.format is own
        self.end_ids = {self.end_id, *end_ids} | ({tokenizer.eos_token_id} - {None})
        if self.format is LLAMA and _LLAMA_END in tokenizer.get_added_vocab():
            self.end_ids.add(int(tokenizer.convert_tokens_to_ids(_LLAMA_END)))
        added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        special = {*added, *tokenizer.all_special_tokens, *self.format.marks, self.end_token}
        self._special = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)))
        # Where the template has no system messages, the user describes the tools.
        self._system_role = "system" if _MARK in self._rendered([_TOLD, _USER]) else "user"
        self._check_template()

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Tokens up to the assistant's first one, for messages that the assistant has not answered yet."""
        shown, safe_tools = self._shown(messages), self._safe_tools(tools)
        if self.native:
            return self._tokens(self._render(shown, safe_tools, prompt=True))
        shown = plain.alternating(plain.with_tools(shown, safe_tools, self.format, self._system_role))
        return self._tokens(self._render(shown, prompt=True))

    def observation_ids(
        self, observation: str, tool_name: str, *, user_turn: str | None = None, closed: bool = True
    ) -> list[int]:
        """Tokens between the assistant's end-of-turn token and its next first token.

        `user_turn` is what the user says after the observation, if anything. With `closed=False` (the model was cut off
        before its end-of-turn token) the end-of-turn token comes first.
        """
        messages = [tool_message(tool_name, observation)]
        if user_turn is not None:
            messages.append({"role": "user", "content": user_turn})
        ids = self._between(messages)
        return ids if closed else [self.end_id, *ids]

    def parse(self, ids: Sequence[int]) -> ParsedTurn:
        """Read the sampled tokens of one turn, end-of-turn token included or not."""
        kept = list(ids[:-1]) if len(ids) and int(ids[-1]) in self.end_ids else list(ids)
        return self.format.parse(self._text(kept))

    def assistant_ids(self, message: Message) -> list[int]:
        """Tokens that the model should sample for an assistant message, its end-of-turn token included.

        Raises ValueError where these tokens would not be read back as the message's call, or end the turn too early.
        """
        ids = self._tokens(self._turn_text(self._turn(message)))
        calls, read = calls_of(message), self.format.parse(self._text(ids[:-1]))
        if self.end_ids.intersection(ids[:-1]):
            raise ValueError(f"an assistant message holds a token that ends its turn: {self._text(ids)[:200]!r}")
        if calls != ([read.call] if read.call else []):
            raise ValueError(
                f"an assistant message with {calls or 'no call'} would be read as {read.call or read.problem} in the "
                f"format '{self.format.name}': {read.text[:200]!r}"
            )
        return ids

    def encode(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> Encoded:
        """Cut a recorded conversation into the tokens that a rollout would have made. Messages after the last
        assistant turn are left out. Raises ValueError if there is no assistant turn or two stand side by side."""
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not turns:
            raise ValueError("a conversation to learn from needs an assistant message, and there is none")
        ids = self.prompt_ids(messages[: turns[0]], tools)
        spans: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if number:
                ids += self._between(messages[turns[number - 1] + 1 : turn])
            start = len(ids)
            ids += self.assistant_ids(messages[turn])
            spans.append((start, len(ids)))
        return Encoded(np.asarray(ids, dtype=np.int32), tuple(spans))

    def _between(self, messages: Sequence[Message]) -> list[int]:
        if not messages:
            raise ValueError("two assistant messages stand side by side; merge them or put the tool's answer between")
        stub = self._stub(str(messages[0].get("name") or "tool"))
        text = self._render([_USER, stub, *self._following(messages)], prompt=True)
        # Only the text after the stub's turn counts: some templates rewrite a turn once it is not the last.
        cut = text.index(self.end_token, text.index(_MARK)) + len(self.end_token)
        return self._tokens(text[cut:])

    def _find_end(self) -> tuple[str, int]:
        text = self._render([_USER, _SPOKEN])
        ids = self._tokens(text.rpartition(_MARK)[2].lstrip())
        token = self.tokenizer.convert_ids_to_tokens(ids[0]) if ids else ""
        if not ids or token not in self.tokenizer.get_added_vocab():
            raise ValueError(
                f"the chat template must end an assistant turn with one special token, but ends it with {token!r} "
                f"(rendered: {text!r}); add that text to the tokenizer as one special token"
            )
        self._check_prefix(text)
        return str(token), int(ids[0])

    def _own_format(self) -> Format | None:
        """The format in which the chat template itself writes a call."""
        try:
            said = self._turn_text(_native(_PROBE)).removesuffix(self.end_token)
        except ValueError:
            return None
        return next((f for f in (LLAMA, HERMES) if [f.parse(said).call] == calls_of(_PROBE)), None)

    def _auto_format(self, own: Format | None) -> Format:
        """The template's own format, or ReAct for one that knows no tools."""
        said = self._rendered([_USER, _native(_PROBE)])
        if not own and _MARK in said:
            raise ValueError(
                f"the chat template writes calls in a form that cannot be read: {said[-200:]!r}; expected Hermes' "
                "or Llama 3.1's. Set policy.chat_format to react to use plain text instead"
            )
        if not own and _MARK in self._rendered([_USER], [_PROBE_TOOL]):
            raise ValueError(
                "the chat template does not render tool calls; use the model's tool-calling template, or set "
                "policy.chat_format to react to use plain text"
            )
        return own or REACT

    def _check_template(self) -> None:
        if self.native and _MARK not in self._render([_USER], [_PROBE_TOOL]):
            raise ValueError("the chat template does not render tools; use the model's tool-calling template")
        answer = self._following([tool_message(_MARK, _OTHER)])
        answered = self._render([_USER, self._stub(_MARK), *answer])
        if _OTHER not in answered:
            what = "tool messages" if self.native else "messages of text"
            raise ValueError(f"the chat template does not render {what}; use the model's template for tool calling")
        self._check_prefix(answered)
        self.assistant_ids(_PROBE)

    def _check_prefix(self, episode: str) -> None:
        opening = self._render([_USER], prompt=True)
        if not episode.startswith(opening):
            raise ValueError(
                "the chat template changes what stands before a turn once the turn is made, so that no prompt is a "
                f"prefix of its episode (prompt: {opening[-80:]!r}, episode: {episode[: len(opening)][-80:]!r})"
            )

    def _turn(self, message: Message) -> Message:
        """An assistant message as the template takes it."""
        turn = _native(message)
        return turn if self.native else plain.to_text([turn], self.format)[0]

    def _stub(self, name: str) -> Message:
        """Some turn before the answer of the tool of that name."""
        return _native(_probe(name)) if self.native else _SPOKEN

    def _turn_text(self, turn: Message) -> str:
        opening = self._render([_USER], prompt=True)
        text = self._render([_USER, turn])
        if not text.startswith(opening):
            raise ValueError("the chat template renders an assistant turn that does not begin with its own prompt")
        body, end, _ = text[len(opening) :].rpartition(self.end_token)
        return body + end

    def _shown(self, messages: Sequence[Message]) -> list[Message]:
        safe = [self._safe(m) for m in messages]
        return safe if self.native else plain.to_text(safe, self.format)

    def _following(self, messages: Sequence[Message]) -> list[Message]:
        shown = self._shown(messages)
        return shown if self.native else plain.alternating(shown)

    def _safe(self, message: Message) -> Message:
        """The message without text that would be read as special tokens: what users and tools write ends no turn."""
        safe = {**message, "content": self._broken(text_of(message))}
        return {**safe, "tool_call_id": _CALL_ID} if message["role"] == "tool" else safe

    def _safe_tools(self, tools: Sequence[ToolSchema]) -> list[ToolSchema]:
        schemas: list[ToolSchema] = json.loads(self._broken(json.dumps(model_schemas(tools), ensure_ascii=False)))
        return schemas

    def _broken(self, text: str) -> str:
        return self._special.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)

    def _render(self, messages: list[Message], tools: Sequence[ToolSchema] = (), prompt: bool = False) -> str:
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False
            )
        except TemplateError as error:
            roles = [m["role"] for m in messages]
            raise ValueError(f"the chat template refuses messages of the roles {roles}: {error}") from error
        return str(text)

    def _rendered(self, messages: list[Message], tools: Sequence[ToolSchema] = ()) -> str:
        """The text of the messages; empty where the template refuses them."""
        try:
            return self._render(messages, tools)
        except ValueError:
            return ""

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _probe(name: str) -> Message:
    return call_message(ToolCall(name, {"x": _MARK}))


_PROBE = _probe(_MARK)


def _native(message: Message) -> Message:
    """The message with the id that some templates ask for, which ties a call to its answer."""
    calls = calls_of(message)
    if len(calls) > 1:
        raise ValueError(f"an assistant turn makes one call, got {len(calls)}; split it with one_call_per_turn")
    if not calls:
        return {k: v for k, v in message.items() if k != "tool_calls"}
    turn = {**message, **call_message(calls[0], text_of(message))}
    return {**turn, "tool_calls": [{"id": _CALL_ID, **call} for call in turn["tool_calls"]]}
