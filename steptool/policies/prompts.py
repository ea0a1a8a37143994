"""From an episode to the tokens of its next turn and back, for every policy that samples tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steptool.chat.codec import ChatCodec
from steptool.records import StopReason, ToolSchema
from steptool.rollout.episode import Episode, observed_name, opening
from steptool.rollout.turns import Refusal, Turn, TurnCost, TurnTokens

_GAP = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """What the next turn of an episode is sampled after."""

    ids: Sequence[int]
    """All tokens, a hint included."""
    context_ids: Sequence[int]
    """Those that the path gains before the turn: they answer the last turn, and never hold a hint."""
    tools: Sequence[ToolSchema] = ()
    """The tools of the episode, whose schemas give the types of arguments in some chat formats."""


class Prompter:
    """Renders prompts in a chat format, within a context of `max_context` tokens with room for `max_new_tokens`."""

    def __init__(self, codec: ChatCodec, max_context: int, max_new_tokens: int) -> None:
        self._codec, self._max_context, self._max_new = codec, max_context, max_new_tokens
        self._first_ids: dict[Episode, list[int]] = {}

    def begin(self, episodes: Sequence[Episode]) -> dict[Episode, int]:
        """Render the first prompts and give their lengths. Raises ValueError if one leaves no room for a turn."""
        self._first_ids = {}
        for episode in episodes:
            self._first_ids[episode] = ids = self._context_ids(episode)
            if not self._has_room(ids):
                raise ValueError(
                    f"query '{episode.query.query_id}': its prompt of {len(ids)} tokens and a turn of {self._max_new} "
                    f"tokens (rollout.max_new_tokens) do not fit policy.max_context = {self._max_context}; raise "
                    "max_context or leave the query out"
                )
        return {episode: len(ids) for episode, ids in self._first_ids.items()}

    def next(self, episode: Episode) -> Prompt | Refusal:
        """The prompt of the next turn; a refusal where a whole turn has no room behind it.

        A hint is left out where there is room without it alone.
        """
        path, context_ids = path_ids(episode), self._context_ids(episode)
        ids = [*path, *context_ids]
        if not self._has_room(ids):
            return Refusal(StopReason.CONTEXT_LIMIT)
        hinted = [*path, *self._context_ids(episode, episode.hint)] if episode.hint else ids
        return Prompt(hinted if self._has_room(hinted) else ids, context_ids, episode.query.tools)

    def turn(self, prompt: Prompt, ids: Sequence[int], logprobs: npt.NDArray[np.float32]) -> Turn:
        """The turn whose tokens were sampled after the prompt."""
        return Turn(
            self._codec.parse(ids, prompt.tools),
            TurnCost(completion_tokens=len(ids)),
            TurnTokens(prompt.context_ids, ids, logprobs),
        )

    def _context_ids(self, episode: Episode, hint: str = "") -> list[int]:
        """Tokens from the end of the last turn to the next one, with the hint as the last that the user says."""
        if not episode.exchanges:
            return self._opening_ids(episode, hint)
        last = episode.exchanges[-1]
        assert last.turn.tokens is not None
        user_turn = last.user_turn
        if hint:
            user_turn = f"{user_turn}{_GAP}{hint}" if user_turn else hint
        closed = last.turn.tokens.ids[-1] in self._codec.end_ids
        return self._codec.observation_ids(
            last.step.observation, observed_name(last.step), user_turn=user_turn, closed=closed
        )

    def _opening_ids(self, episode: Episode, hint: str) -> list[int]:
        if not hint and episode in self._first_ids:
            return self._first_ids[episode]
        (first,) = opening(episode.query)
        content = f"{first['content']}{_GAP}{hint}" if hint else first["content"]
        return self._codec.prompt_ids([{**first, "content": content}], episode.query.tools)

    def _has_room(self, ids: Sequence[int]) -> bool:
        return len(ids) + self._max_new <= self._max_context


def path_ids(episode: Episode) -> list[int]:
    """All tokens of the episode's path so far, up to the end of its last turn."""
    ids: list[int] = []
    for exchange in episode.exchanges:
        assert exchange.turn.tokens is not None, "an episode is played by one policy"
        ids += [*exchange.turn.tokens.context_ids, *exchange.turn.tokens.ids]
    return ids
