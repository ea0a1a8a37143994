"""A policy that samples from a language model in this process, its KV cache kept across turns."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from math import ceil
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec
from steptool.policies.engine import PolicySettings, Prompt, TokenPolicy
from steptool.policies.kv_cache import Rows, check_context
from steptool.policies.sampler import BatchSampler, Feed, SampledTurn
from steptool.rollout.episode import Decoding, Episode, Refusal
from steptool.rollout.runner import EndedTurn

_WAITING_SHARE = 0.2
"""Share of the rows whose turns must have ended, or been answered, before they are handed back together."""
_SHRINK_SHARE = 0.75
"""Share of rows in use below which the batch is made smaller."""


@dataclass
class _Seat:
    """The random numbers of a row's episode, and the prompt of the turn that is being sampled."""

    random: torch.Generator
    prompt: Prompt | None = None


class LocalPolicy(TokenPolicy):
    """A causal language model with a chat codec; `rollout.batch_size` episodes are decoded together.

    What an episode samples depends on the seed, the round, its query and its sample alone, not on the batch or shard
    that it runs in (up to rounding). The model is in evaluation mode until `close`.
    """

    patience = 0.05

    def __init__(self, model: PreTrainedModel, codec: ChatCodec, **settings: Unpack[PolicySettings]) -> None:
        super().__init__(codec, **settings)
        self._model = model
        check_context(model, settings["max_context"])
        self._was_training = model.training
        model.eval()
        self._rows = Rows(0)
        self._seats: dict[Episode, _Seat] = {}
        self._to_come = 0
        """Episodes of the run that have no row yet."""
        self._queue: list[tuple[Episode, Prompt]] = []

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> list[Episode]:
        """Order episodes by the length of their prompts, longest first. Raises ValueError if a turn has no room."""
        lengths = self._prompter.begin(episodes)
        self._rows, self._seats = Rows(min(self.capacity, len(episodes))), {}
        self._to_come, self._queue, self._refusals = len(episodes), [], []
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
                self._refusals.append((episode, prompt))
            else:
                self._seat(episode)
                self._queue.append((episode, prompt))

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """Sample until a share of the rows has ended its turns or been answered."""
        if self._refusals:
            refusals, self._refusals = self._refusals, []
            return refusals
        self._feed()
        if not self._sampler.open:
            wait(until, return_when=FIRST_COMPLETED)
            return []
        enough = ceil(_WAITING_SHARE * self._sampler.open)
        while self._sampler.ended_count + sum(future.done() for future in until) < enough:
            self._sampler.step()
        return [self._end_turn(turn) for turn in self._sampler.take()]

    def release(self, episode: Episode) -> None:
        """Free the episode's row."""
        self._rows.release(episode)
        del self._seats[episode]

    def close(self) -> None:
        """Put the model back in the mode it was in."""
        self._model.train(self._was_training)

    def _seat(self, episode: Episode) -> None:
        """Give the episode a row if it has none."""
        if episode not in self._seats:
            key = f"{self._seed}/{episode.round_index}/{episode.query.query_id}/{episode.sample}"
            digest = hashlib.sha256(key.encode()).digest()
            self._seats[episode] = _Seat(torch.Generator().manual_seed(int.from_bytes(digest[:7])))
            self._rows.take(episode)
            self._to_come -= 1

    def _feed(self) -> None:
        """Give the queued prompts to their rows, and drop rows that nothing will need again."""
        stages = self._rows.plan([(e, prompt.ids, self._seats[e].prompt is None) for e, prompt in self._queue])
        uniforms = {}
        for episode, prompt in self._queue:
            seat = self._seats[episode]
            seat.prompt = prompt
            numbers = torch.rand(self._rollout.max_new_tokens, generator=seat.random)
            uniforms[self._rows.row_of(episode)] = numbers.numpy()
        self._queue = []
        for stage in stages:
            for copy in stage.copies:
                self._sampler.copy(*copy)
            self._sampler.feed([Feed(*fill, uniforms[fill.row]) for fill in stage.fills])
        rows = self._rows.in_use
        if rows and not self._to_come and len(rows) < _SHRINK_SHARE * len(self._rows):
            self._sampler.keep(rows)
            self._rows.keep(rows)

    def _end_turn(self, turn: SampledTurn) -> EndedTurn:
        episode = self._rows.episode_of(turn.row)
        # The last sampled token was not fed back: its keys and values are not in the cache.
        self._rows.append(turn.row, turn.ids[:-1])
        prompt = self._seats[episode].prompt
        assert prompt is not None
        return episode, self._prompter.turn(prompt, turn.ids, turn.logprobs)
