"""Between messages and tokens, for any Hugging Face tokenizer.

An episode is the prompt's tokens, then in turn the sampled tokens of the assistant and the tokens between its
end-of-turn token and its next first token. Each part is tokenised once and never again, so that what is trained on is
what was sampled, and supervised examples are cut exactly like episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from steptool.chat.call_format import ChatFormat, ParsedTurn
from steptool.chat.formats import FORMATS, LLAMA, REACT
from steptool.chat.messages import make_tool_message, read_calls, read_text, strip_hints
from steptool.chat.template import DATE, PLAIN, ChatTemplate, StructureFilter
from steptool.chat.turns import (
    CALL_ID,
    PROBE,
    TurnRenderer,
    find_native_format,
    join_user_messages,
    to_text,
    with_tools,
)
from steptool.records import Message, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
"""The format in which the chat template writes calls; ReAct where it knows neither tools nor calls."""
_LLAMA_END = "<|eom_id|>"
"""Ends a turn of Llama 3.1 that calls a tool after <|python_tag|>."""
_NOTHING_SAMPLED: Mapping[int, Sequence[int]] = MappingProxyType({})


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
    given messages of plain text (`steptool.chat.turns`), and `native` is false. A tokenizer without a chat template
    gets one for plain text, which is saved with it. `day` stands for today where the template prints the date.

    Raises ValueError where the chat template cannot be used: no template in another format than react, tools or tool
    messages not rendered, calls in a form that no format reads, no token that ends a turn, or a turn that does not
    begin with its own prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_format: str = AUTO,
        end_ids: Iterable[int] = (),
        day: str = DATE,
    ) -> None:
        self.tokenizer = tokenizer
        give_template(tokenizer, chat_format)
        template = ChatTemplate(tokenizer, day)
        own_format, json_arguments = find_native_format(template)
        form = None if chat_format == AUTO else FORMATS[ChatFormat(chat_format)]
        self.native = own_format is not None and form in (None, own_format)
        if not self.native:
            template = ChatTemplate(tokenizer, day, tools=False)
        self.format = own_format if own_format and self.native else form or REACT
        self._template = template
        self._turns = TurnRenderer(template, self.format, native=self.native, json_arguments=json_arguments)
        if form is None and not own_format:
            self._turns.check_that_react_fits()
        self.end_token, self.end_id = self._turns.end_token, int(tokenizer.convert_tokens_to_ids(self._turns.end_token))
        self._answer_end_id = int(tokenizer.convert_tokens_to_ids(self._turns.answer_end))
        self.end_ids = {self.end_id, self._answer_end_id, *end_ids} | ({tokenizer.eos_token_id} - {None})
        if self.format is LLAMA and _LLAMA_END in tokenizer.get_added_vocab():
            self.end_ids.add(int(tokenizer.convert_tokens_to_ids(_LLAMA_END)))
        self._knows_developer = "developer" in template.literals
        self._filter = StructureFilter(template, self.format)
        self._heads: dict[str, list[int]] = {}
        """Tokens of the texts after which turns and answers are encoded."""
        self._turns.check()
        self.assistant_ids(PROBE)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Tokens up to the assistant's first one, for messages that the assistant has not answered yet.

        Raises ValueError without any message.
        """
        if not messages:
            raise ValueError("a conversation begins with the system or the user, and this one with the assistant")
        safe = self._turns.place_systems(self._make_safe(messages), at_beginning=True)
        safe_tools = self._make_tools_safe(tools)
        if self._turns.shows_tools:
            return self._encode(self._template.render(safe, safe_tools, prompt=True))
        role = self._turns.system_role
        conversation = with_tools(safe, safe_tools, self.format, role, answers=not self.native)
        return self._encode(self._template.render(join_user_messages(conversation), prompt=True))

    def observation_ids(
        self, observation: str, tool_name: str, *, user_turn: str | None = None, closed: bool = True
    ) -> list[int]:
        """Tokens between the assistant's end-of-turn token and its next first token.

        `user_turn` is what the user says after the observation, if anything. With `closed=False` (the model was cut off
        before its end-of-turn token) the end-of-turn token comes first.
        """
        messages = [make_tool_message(tool_name, observation)]
        if user_turn is not None:
            messages.append({"role": "user", "content": user_turn})
        ids = self._encode_between(messages)
        return ids if closed else [self.end_id, *ids]

    def user_ids(self, user_turn: str, *, closed: bool = True) -> list[int]:
        """Tokens between the end of a turn without a call and the next turn, where the user speaks.

        `closed` as in `observation_ids`.
        """
        ids = self._encode_between([{"role": "user", "content": user_turn}])
        return ids if closed else [self._answer_end_id, *ids]

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Read the sampled tokens of one turn, end-of-turn token included or not.

        `tools` give the types of arguments in formats that write them as bare text.
        """
        return self._read(ids, tools)

    def assistant_ids(self, message: Message, tools: Sequence[ToolSchema] = (), *, first: bool = True) -> list[int]:
        """Tokens that the model should sample for an assistant message, its end-of-turn token included.

        `first`: it is the first of the episode; some templates open thinking in the first prompt alone.
        Raises ValueError where these tokens would not be read back as the message's call, or end the turn too early.
        """
        ids = self._encode_after(self._turns.prompt_tail, self._turns.write(message, tools, first=first))
        calls, turn = read_calls(message), self._read(ids, tools)
        if self.end_ids.intersection(ids[:-1]):
            raise ValueError(f"an assistant message holds a token that ends its turn: {self._decode(ids)[:200]!r}")
        if calls != ([turn.call] if turn.call else []):
            raise ValueError(
                f"an assistant message with {calls or 'no call'} would be read as {turn.call or turn.problem} in the "
                f"format '{self.format.name}': {turn.text[:200]!r}"
            )
        return ids

    def next_prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], sampled: Mapping[int, Sequence[int]]
    ) -> list[int]:
        """Tokens up to the assistant's next turn, in a conversation with any number of turns.

        `sampled` gives the tokens of assistant messages that were sampled before, by position; others are encoded.
        Raises ValueError if the last message is the assistant's, and as `encode` does.
        """
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not turns:
            return self.prompt_ids(messages, tools)
        path = self.encode(messages, tools, sampled).input_ids.tolist()
        following = messages[turns[-1] + 1 :]
        return [*path, *self._find_missing_end(path, following), *self._encode_between(following)]

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        sampled: Mapping[int, Sequence[int]] = _NOTHING_SAMPLED,
    ) -> Encoded:
        """Cut a recorded conversation into the tokens that a rollout would have made. Messages after the last
        assistant turn are left out. `sampled` as in `next_prompt_ids`.

        Raises ValueError if there is no assistant turn or two stand side by side.
        """
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not turns:
            raise ValueError("a conversation to learn from needs an assistant message, and this one lacks it")
        ids = self.prompt_ids(messages[: turns[0]], tools)
        spans: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if number:
                following = messages[turns[number - 1] + 1 : turn]
                ids += [*self._find_missing_end(ids, following), *self._encode_between(following)]
            start = len(ids)
            ids += sampled.get(turn) or self.assistant_ids(messages[turn], tools, first=not number)
            spans.append((start, len(ids)))
        return Encoded(np.asarray(ids, dtype=np.int32), tuple(spans))

    def _read(self, ids: Sequence[int], tools: Sequence[ToolSchema]) -> ParsedTurn:
        """Read a turn; `assistant_ids` checks its tokens by this, also where a subclass replaces `parse`."""
        content_ids = list(ids[:-1]) if len(ids) and int(ids[-1]) in self.end_ids else list(ids)
        return self.format.parse(self._turns.read(self._decode(content_ids)), tools)

    def _find_missing_end(self, ids: Sequence[int], following: Sequence[Message]) -> list[int]:
        """The token that ends the last turn, where these messages follow it and it was cut off before that token."""
        if ids[-1] in self.end_ids:
            return []
        return [self.end_id if following and following[0]["role"] == "tool" else self._answer_end_id]

    def _encode_between(self, messages: Sequence[Message]) -> list[int]:
        if not messages:
            raise ValueError("two assistant messages stand side by side; merge them or put the tool's answer between")
        safe = self._turns.place_systems(self._make_safe(messages), at_beginning=False)
        if not self.native:
            safe = join_user_messages(safe)
        text = self._turns.render_between(safe, str(messages[0].get("name") or "tool"))
        end = self.end_token if messages[0]["role"] == "tool" else self._turns.answer_end
        return self._encode_after(end, text)

    def _make_safe(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template takes them, without text in them that would change their structure."""
        safe = [self._make_message_safe(message) for message in messages]
        return safe if self.native else to_text(safe, self.format)

    def _make_message_safe(self, message: Message) -> Message:
        safe = {**message, "content": self._filter.clean(read_text(message))}
        if message["role"] == "developer" and not self._knows_developer:
            safe["role"] = "system"
        return {**safe, "tool_call_id": CALL_ID} if message["role"] == "tool" else safe

    def _make_tools_safe(self, tools: Sequence[ToolSchema]) -> list[ToolSchema]:
        text = json.dumps(strip_hints(tools), ensure_ascii=False)
        schemas: list[ToolSchema] = json.loads(self._filter.clean(text))
        return schemas

    def _encode(self, text: str) -> list[int]:
        with _explain_panic():
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _encode_after(self, before: str, text: str) -> list[int]:
        """Tokens of a text as they are after another: a tokenizer may put a space before what it begins with."""
        if before not in self._heads:
            self._heads[before] = self._encode(before)
        head, whole = self._heads[before], self._encode(before + text)
        return whole[len(head) :] if whole[: len(head)] == head else self._encode(text)

    def _decode(self, ids: Sequence[int]) -> str:
        with _explain_panic():
            text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


@contextmanager
def _explain_panic() -> Iterator[None]:
    """Turn a panic of the tokenizer's own code, as on an expression that takes too long, into a ValueError.

    The panic is no Exception, so that no other handler catches it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = f"the tokenizer cannot read or write a text ({error}); take a model with another tokenizer"
        raise ValueError(reason) from error


def give_template(tokenizer: PreTrainedTokenizerBase, chat_format: str) -> None:
    """Give a tokenizer without a chat template the one for plain text, with which it is then saved.

    Raises ValueError unless the format is react and the tokenizer has an eos token.
    """
    if tokenizer.chat_template:
        return
    if chat_format != ChatFormat.REACT or not tokenizer.eos_token:
        raise ValueError(
            "the tokenizer has no chat template; set tokenizer.chat_template to one that renders tools, or set "
            "policy.chat_format to react, which needs an eos token and no chat template"
        )
    tokenizer.chat_template = PLAIN.read_text(encoding="utf-8")
