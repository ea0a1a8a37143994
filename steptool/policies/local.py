"""A policy that samples from a language model in this process, its KV cache kept across turns."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec
from steptool.config import RolloutConfig, SearchConfig
from steptool.policies.attention import check_context
from steptool.policies.prompts import Prompt, Prompter
from steptool.policies.sampler import BatchSampler, Feed, SampledTurn
from steptool.rollout.episode import Episode
from steptool.rollout.policy import EndedTurn, Policy
from steptool.rollout.turns import Decoding, Refusal

_WAITING_SHARE = 0.2
"""Share of the rows whose turns must have ended, or been answered, before they are handed back together."""
_SHRINK_SHARE = 0.75
"""Share of rows in use below which the batch is made smaller."""


@dataclass
class _Seat:
    """An episode that has a row of the batch."""

    episode: Episode
    random: torch.Generator
    prompt: Prompt = field(default_factory=lambda: Prompt((), ()))
    """Of the turn that is being sampled."""
    cached: list[int] = field(default_factory=list)
    """Tokens whose keys and values the row holds."""


class LocalPolicy(Policy):
    """A causal language model with a chat codec; `rollout.batch_size` episodes are decoded together.

    What an episode samples depends on the seed, the round, its query and its sample alone, not on the batch or shard
    that it runs in (up to rounding). The model is in evaluation mode until `close`.
    """

    patience = 0.05

    def __init__(
        self,
        model: PreTrainedModel,
        codec: ChatCodec,
        *,
        name: str,
        rollout: RolloutConfig,
        max_context: int,
        seed: int,
        search: SearchConfig | None = None,
    ) -> None:
        self.name, self.search = name, search
        self.capacity, self.max_steps = rollout.batch_size, rollout.max_steps
        self._model, self._codec, self._rollout, self._seed = model, codec, rollout, seed
        self._prompter = Prompter(codec, max_context, rollout.max_new_tokens)
        check_context(model, max_context)
        self._was_training = model.training
        model.eval()
        self._rows: list[_Seat | None] = []
        self._to_come = 0
        """Episodes of the run that have no row yet."""
        self._queue: list[tuple[_Seat, Prompt]] = []
        self._refused: list[EndedTurn] = []

    def temperature(self, decoding: Decoding) -> float:
        """That of the rollouts, whatever the decoding."""
        return self._rollout.temperature

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> list[Episode]:
        """The episodes with the longest prompts first. Raises ValueError if a prompt leaves no room for a turn."""
        lengths = self._prompter.begin(episodes)
        self._rows = [None] * min(self.capacity, len(episodes))
        self._to_come, self._queue, self._refused = len(episodes), [], []
        self._sampler = BatchSampler(
            self._model,
            len(self._rows),
            self._codec.end_ids,
            max_new_tokens=self._rollout.max_new_tokens,
            temperature=self._rollout.temperature,
            greedy=decoding is Decoding.GREEDY,
        )
        return sorted(episodes, key=lengths.__getitem__, reverse=True)

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Queue the next prompts. Nothing is computed before `poll`."""
        for episode in episodes:
            prompt = self._prompter.next(episode)
            if isinstance(prompt, Refusal):
                self._refused.append((episode, prompt))
            else:
                self._queue.append((self._seat(episode), prompt))

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """Sample until a share of the rows has ended its turns or been answered."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        self._feed()
        if not self._sampler.open:
            wait(until, return_when=FIRST_COMPLETED)
            return []
        enough = ceil(_WAITING_SHARE * self._sampler.open)
        while self._sampler.ended + sum(future.done() for future in until) < enough:
            self._sampler.step()
        return [self._ended(turn) for turn in self._sampler.take()]

    def release(self, episode: Episode) -> None:
        """Free the episode's row."""
        self._rows[self._row_of(episode)] = None

    def close(self) -> None:
        """Put the model back in the mode it was in."""
        self._model.train(self._was_training)

    def _seat(self, episode: Episode) -> _Seat:
        seat = next((seat for seat in self._rows if seat and seat.episode is episode), None)
        if seat is None:
            key = f"{self._seed}/{episode.round_index}/{episode.query.query_id}/{episode.sample}"
            digest = hashlib.sha256(key.encode()).digest()
            seat = _Seat(episode, torch.Generator().manual_seed(int.from_bytes(digest[:7])))
            self._rows[self._rows.index(None)] = seat
            self._to_come -= 1
        return seat

    def _row_of(self, episode: Episode) -> int:
        return next(row for row, seat in enumerate(self._rows) if seat and seat.episode is episode)

    def _feed(self) -> None:
        """Give the queued prompts to their rows, and drop rows that nothing will need again."""
        feeds = []
        for seat, prompt in self._queue:
            ids = list(prompt.ids)
            start = min(_common(seat.cached, ids), len(ids) - 1)
            uniforms = torch.rand(self._rollout.max_new_tokens, generator=seat.random).numpy()
            seat.prompt, seat.cached = prompt, ids
            feeds.append(Feed(self._row_of(seat.episode), start, ids[start:], uniforms))
        self._queue = []
        self._sampler.feed(feeds)
        rows = [row for row, seat in enumerate(self._rows) if seat]
        if rows and not self._to_come and len(rows) < _SHRINK_SHARE * len(self._rows):
            self._sampler.keep(rows)
            self._rows = [self._rows[row] for row in rows]

    def _ended(self, turn: SampledTurn) -> EndedTurn:
        seat = self._rows[turn.row]
        assert seat is not None
        # The last sampled token was not fed back: its keys and values are not in the cache.
        seat.cached += turn.ids[:-1]
        return seat.episode, self._prompter.turn(seat.prompt, turn.ids, turn.logprobs)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
