"""Between messages and tokens, for any Hugging Face tokenizer whose chat template renders tools and tool messages.

An episode is the prompt's tokens, then in turn the sampled tokens of the assistant and the tokens between its
end-of-turn token and its next first token. Each part is tokenised on its own and never again, so that what is trained
on is what was sampled, and supervised examples are cut exactly like episodes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from steptool.chat.formats import CALL_CLOSE, CALL_OPEN, ParsedTurn, parse_hermes
from steptool.trajectory import Message, ToolCall, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "codecprobe"
_OTHER = "probecodec"
_CALL_ID = "call00000"
_USER: Message = {"role": "user", "content": "?"}
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
    """Messages to tokens and sampled tokens to calls. `end_ids` are the tokens that end an assistant's turn.

    Raises ValueError where the chat template cannot be used: no template, tools or tool messages not rendered, no
    single token that ends a turn, or a turn rendered differently once others follow it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template; set tokenizer.chat_template to one that renders tools"
            )
        added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        special = {*added, *tokenizer.all_special_tokens, CALL_OPEN, CALL_CLOSE}
        self._special = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)))
        self.end_token, self.end_id = self._find_end()
        self.end_ids = {self.end_id} | ({tokenizer.eos_token_id} - {None})
        self._check_template()

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Tokens up to the assistant's first one, for messages that the assistant has not answered yet."""
        return self._tokens(self._render([self._safe(m) for m in messages], tools, prompt=True))

    def observation_ids(
        self, observation: str, tool_name: str, *, user_turn: str | None = None, closed: bool = True
    ) -> list[int]:
        """Tokens between the assistant's end-of-turn token and its next first token.

        `user_turn` is what the user says after the observation, if anything. With `closed=False` (the model was cut off
        before its end-of-turn token) the end-of-turn token comes first.
        """
        messages: list[Message] = [{"role": "tool", "name": tool_name, "content": observation}]
        if user_turn is not None:
            messages.append({"role": "user", "content": user_turn})
        ids = self._between(messages)
        return ids if closed else [self.end_id, *ids]

    def parse(self, ids: Sequence[int]) -> ParsedTurn:
        """Read the sampled tokens of one turn, end-of-turn token included or not."""
        kept = list(ids[:-1]) if len(ids) and int(ids[-1]) in self.end_ids else list(ids)
        text = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return parse_hermes(text)

    def assistant_ids(self, message: Message) -> list[int]:
        """Tokens that the model should sample for an assistant message, its end-of-turn token included."""
        opening = self._render([_USER], prompt=True)
        text = self._render([_USER, _identified(message)])
        if not text.startswith(opening):
            raise ValueError("the chat template renders an assistant turn that does not begin with its own prompt")
        body, end, _ = text[len(opening) :].rpartition(self.end_token)
        return self._tokens(body + end)

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
        name = str(messages[0].get("name") or "tool")
        text = self._render([_USER, _assistant(name), *(self._safe(m) for m in messages)], prompt=True)
        # Only the text after the stub's turn counts: some templates rewrite a turn once it is not the last.
        cut = text.index(self.end_token, text.index(_MARK)) + len(self.end_token)
        return self._tokens(text[cut:])

    def _find_end(self) -> tuple[str, int]:
        text = self._render([_USER, {"role": "assistant", "content": _MARK}])
        ids = self._tokens(text.rpartition(_MARK)[2].lstrip())
        token = self.tokenizer.convert_ids_to_tokens(ids[0]) if ids else ""
        if not ids or token not in self.tokenizer.get_added_vocab():
            raise ValueError(
                f"the chat template must end an assistant turn with one special token, but ends it with {token!r} "
                f"(rendered: {text!r}); add that text to the tokenizer as one special token"
            )
        return str(token), int(ids[0])

    def _check_template(self) -> None:
        if _MARK not in self._render([_USER], [_PROBE_TOOL]):
            raise ValueError("the chat template does not render tools; use the model's tool-calling template")
        if _MARK not in self._render([_USER, _assistant(_MARK)]):
            raise ValueError("the chat template does not render tool calls; use the model's tool-calling template")
        if self.end_token not in self._render([_USER, _assistant(_MARK)]).rpartition(_MARK)[2]:
            raise ValueError(
                f"the chat template does not end a tool call with {self.end_token!r} as it ends other turns"
            )
        answered = self._render([_USER, _assistant(_MARK), {"role": "tool", "name": _MARK, "content": _OTHER}])
        if _OTHER not in answered:
            raise ValueError("the chat template does not render tool messages; use the model's tool-calling template")
        opening = self._render([_USER], prompt=True)
        if not answered.startswith(opening):
            raise ValueError(
                "the chat template changes what stands before a turn once the turn is made, so that no prompt is a "
                f"prefix of its episode (prompt: {opening[-80:]!r}, episode: {answered[: len(opening)][-80:]!r})"
            )
        self.assistant_ids(_assistant(_MARK))

    def _safe(self, message: Message) -> Message:
        """The message without text that would be read as special tokens: what users and tools write ends no turn."""
        content = message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"a {message.get('role')} message needs text as its content, got {content!r}")
        safe = {**message, "content": self._special.sub(lambda m: f"{m[0][0]} {m[0][1:]}", content)}
        return {**safe, "tool_call_id": _CALL_ID} if message["role"] == "tool" else safe

    def _render(self, messages: list[Message], tools: Sequence[ToolSchema] = (), prompt: bool = False) -> str:
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False
            )
        except TemplateError as error:
            roles = [m["role"] for m in messages]
            raise ValueError(f"the chat template refuses messages of the roles {roles}: {error}") from error
        return str(text)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def call_message(call: ToolCall, thought: str = "") -> Message:
    """An assistant message that makes one call."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"role": "assistant", "content": thought, "tool_calls": [{"type": "function", "function": function}]}


def _assistant(name: str) -> Message:
    return _identified(call_message(ToolCall(name, {"x": _MARK})))


def _identified(message: Message) -> Message:
    """Some templates ask for the ids that tie calls to answers; here one call stands in each turn."""
    calls = [{"id": _CALL_ID, **call} for call in message.get("tool_calls") or []]
    if len(calls) > 1:
        raise ValueError(f"an assistant turn makes one call, got {len(calls)}; split the turn")
    return {**message, "tool_calls": calls} if calls else {k: v for k, v in message.items() if k != "tool_calls"}
