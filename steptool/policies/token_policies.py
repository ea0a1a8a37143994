"""Policies that sample tokens: from a language model in this process, or with an engine of continuous batching.

Both turn episodes into token ids and back. The model in this process keeps its KV cache across turns.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from math import ceil
from typing import Any, NotRequired, Protocol, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec
from steptool.config import RolloutConfig, SearchConfig
from steptool.policies.kv_cache import Rows, check_context
from steptool.policies.sampler import BatchSampler, Feed, SampledTurn
from steptool.records import StepStatus, StopReason, ToolSchema
from steptool.rollout.episode import Decoding, Episode, Refusal, Turn, TurnCost, TurnTokens, get_observed_name
from steptool.rollout.runner import EndedTurn, Policy

_GAP = "\n\n"
_WAITING_SHARE = 0.2
"""Share of the rows whose turns must have ended, or been answered, before they are handed back together."""
_SHRINK_SHARE = 0.75
"""Share of rows in use below which the batch is made smaller."""


@dataclass(frozen=True)
class Prompt:
    """The tokens after which the next turn of an episode is sampled."""

    ids: Sequence[int]
    """All tokens, a hint included."""
    context_ids: Sequence[int]
    """The tokens that the path gains before the turn: the answer to the last turn, never a hint."""
    tools: Sequence[ToolSchema] = ()
    """The tools of the episode, whose schemas give the types of arguments in some chat formats."""


class Prompter:
    """Renders prompts in a chat format, within a context of `max_context` tokens with room for `max_new_tokens`."""

    def __init__(self, codec: ChatCodec, max_context: int, max_new_tokens: int) -> None:
        self._codec, self._max_context, self._max_new = codec, max_context, max_new_tokens
        self._first_ids: dict[Episode, list[int]] = {}

    def begin(self, episodes: Sequence[Episode]) -> dict[Episode, int]:
        """Render the first prompts and return their lengths. Raises ValueError if one leaves no room for a turn."""
        self._first_ids = {}
        for episode in episodes:
            self._first_ids[episode] = ids = self._encode_context(episode)
            if not self._has_room(ids):
                raise ValueError(
                    f"query '{episode.query.query_id}': its prompt of {len(ids)} tokens and a turn of {self._max_new} "
                    f"tokens (rollout.max_new_tokens) do not fit policy.max_context = {self._max_context}; raise "
                    "max_context or leave the query out"
                )
        return {episode: len(ids) for episode, ids in self._first_ids.items()}

    def make_prompt(self, episode: Episode) -> Prompt | Refusal:
        """The prompt of the next turn, or a refusal if a whole turn does not fit behind it.

        A hint is left out if the turn fits only without it.
        """
        path, context_ids = join_path_ids(episode), self._encode_context(episode)
        ids = [*path, *context_ids]
        if not self._has_room(ids):
            return Refusal(StopReason.CONTEXT_LIMIT)
        hinted = [*path, *self._encode_context(episode, episode.hint)] if episode.hint else ids
        return Prompt(hinted if self._has_room(hinted) else ids, context_ids, episode.tools)

    def make_turn(self, prompt: Prompt, ids: Sequence[int], logprobs: npt.NDArray[np.float32]) -> Turn:
        """The turn whose tokens were sampled after the prompt."""
        return Turn(
            self._codec.parse(ids, prompt.tools),
            TurnCost(completion_tokens=len(ids)),
            TurnTokens(prompt.context_ids, ids, logprobs),
        )

    def _encode_context(self, episode: Episode, hint: str = "") -> list[int]:
        """Tokens from the end of the last turn to the next one, with the hint as the last that the user says."""
        if not episode.exchanges:
            return self._encode_opening(episode, hint)
        last = episode.exchanges[-1]
        assert last.turn.tokens is not None
        user_turn = last.user_turn
        if hint:
            user_turn = f"{user_turn}{_GAP}{hint}" if user_turn else hint
        closed = last.turn.tokens.ids[-1] in self._codec.end_ids
        if user_turn is not None and last.step.status is StepStatus.FINISH and last.turn.parsed.call is None:
            return self._codec.user_ids(user_turn, closed=closed)
        return self._codec.observation_ids(
            last.step.observation, get_observed_name(last.step), user_turn=user_turn, closed=closed
        )

    def _encode_opening(self, episode: Episode, hint: str) -> list[int]:
        if not hint and episode in self._first_ids:
            return self._first_ids[episode]
        *others, last = episode.query.first_messages
        content = f"{last['content']}{_GAP}{hint}" if hint else last["content"]
        return self._codec.prompt_ids([*others, {**last, "content": content}], episode.tools)

    def _has_room(self, ids: Sequence[int]) -> bool:
        return len(ids) + self._max_new <= self._max_context


def join_path_ids(episode: Episode) -> list[int]:
    """All tokens of the episode's path so far, up to the end of its last turn."""
    ids: list[int] = []
    for exchange in episode.exchanges:
        assert exchange.turn.tokens is not None, "an episode is played by one policy"
        ids += [*exchange.turn.tokens.context_ids, *exchange.turn.tokens.ids]
    return ids


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one turn are drawn."""

    max_new_tokens: int
    temperature: float
    """0: the most probable token."""
    end_ids: tuple[int, ...]
    """Tokens that end the turn; the last token sampled is one of them, unless the turn was cut."""
    seed: int
    """Seed of the random draws, for engines that take a seed with each request."""


@dataclass(frozen=True)
class Completion:
    """The tokens of a turn that has ended."""

    request_id: str
    ids: list[int]
    logprobs: npt.NDArray[np.float32]
    """Log-probabilities [len(ids)] at the temperature of sampling (greedy: at 1)."""


class Engine(Protocol):
    """Samples any number of requests side by side, each from its own prompt. It caches the beginnings of prompts."""

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take in a request."""
        ...

    def step(self) -> list[Completion]:
        """Compute one step of all requests and return those that have ended."""
        ...

    def abort(self, request_ids: Collection[str]) -> None:
        """Drop requests whose turns are no longer needed."""
        ...

    def close(self) -> None:
        """Give back the memory of the engine."""
        ...


class PolicySettings(TypedDict):
    """Settings of a policy that samples tokens."""

    name: str
    rollout: RolloutConfig
    max_context: int
    """Tokens of prompt and turns together."""
    seed: int
    search: NotRequired[SearchConfig | None]


class TokenPolicy(Policy):
    """The common part of policies that sample tokens of a causal language model with a chat codec."""

    def __init__(self, codec: ChatCodec, **settings: Unpack[PolicySettings]) -> None:
        rollout = settings["rollout"]
        self.name, self.search = settings["name"], settings.get("search")
        self.capacity, self.max_steps, self.finish = rollout.batch_size, rollout.max_steps, rollout.finish
        self._codec, self._rollout, self._seed = codec, rollout, settings["seed"]
        self._prompter = Prompter(codec, settings["max_context"], rollout.max_new_tokens)
        self._refusals: list[EndedTurn] = []

    def temperature(self, decoding: Decoding) -> float:
        """The temperature of the rollouts, for every decoding."""
        return self._rollout.temperature

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Queue the prompts of the next turns. The next `poll` refuses a prompt that leaves no room for a turn."""
        for episode in episodes:
            prompt = self._prompter.make_prompt(episode)
            if isinstance(prompt, Refusal):
                self._refusals.append((episode, prompt))
            else:
                self._queue_prompt(episode, prompt)

    @abstractmethod
    def _queue_prompt(self, episode: Episode, prompt: Prompt) -> None:
        """Take the prompt in. The turn is sampled in `poll`."""

    def _order_by_length(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Order episodes by the length of their prompts, longest first. Raises ValueError if a turn has no room."""
        lengths = self._prompter.begin(episodes)
        return sorted(episodes, key=lengths.__getitem__, reverse=True)

    def _take_refusals(self) -> list[EndedTurn]:
        refusals, self._refusals = self._refusals, []
        return refusals


class EnginePolicy(TokenPolicy):
    """A causal language model in an engine; `rollout.batch_size` episodes are played side by side.

    An episode whose tool answers late delays no other episode. What an episode samples depends on the seed, the round,
    its query and its sample as far as the engine draws by the seed of a request.
    """

    patience = 0.0

    def __init__(self, engine: Engine, codec: ChatCodec, **settings: Unpack[PolicySettings]) -> None:
        super().__init__(codec, **settings)
        self._engine = engine
        self._end_ids = tuple(sorted(codec.end_ids))
        self._requests: dict[str, tuple[Episode, Prompt]] = {}
        self._request_count = 0
        """Requests until now; the number of a request is its id."""
        self._turns: dict[Episode, int] = {}

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> list[Episode]:
        """Order episodes by the length of their prompts, longest first. Raises ValueError if a turn has no room."""
        self._engine.abort(self._requests.keys())
        self._requests, self._refusals, self._turns = {}, [], {}
        return self._order_by_length(episodes)

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """Step the engine until a turn has ended or an environment has answered."""
        if refusals := self._take_refusals():
            return refusals
        if not self._requests:
            wait(until, return_when=FIRST_COMPLETED)
            return []
        completions: list[Completion] = []
        while not completions and not any(future.done() for future in until):
            completions = self._engine.step()
        return [self._end_turn(completion) for completion in completions]

    def release(self, episode: Episode) -> None:
        """Forget the episode. The engine decides which beginnings of prompts it keeps."""
        self._turns.pop(episode, None)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _queue_prompt(self, episode: Episode, prompt: Prompt) -> None:
        request_id, self._request_count = str(self._request_count), self._request_count + 1
        self._requests[request_id] = episode, prompt
        self._engine.add(request_id, prompt.ids, self._make_sampling(episode))

    def _make_sampling(self, episode: Episode) -> Sampling:
        turn = self._turns[episode] = self._turns.get(episode, -1) + 1
        key = f"{self._seed}/{episode.round_index}/{episode.query.query_id}/{episode.sample}/{turn}"
        return Sampling(
            max_new_tokens=self._rollout.max_new_tokens,
            temperature=0.0 if episode.decoding is Decoding.GREEDY else self._rollout.temperature,
            end_ids=self._end_ids,
            seed=int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]),
        )

    def _end_turn(self, completion: Completion) -> EndedTurn:
        episode, prompt = self._requests.pop(completion.request_id)
        return episode, self._prompter.make_turn(prompt, completion.ids, completion.logprobs)


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
        ordered = self._order_by_length(episodes)
        self._rows, self._seats = Rows(min(self.capacity, len(episodes))), {}
        self._to_come, self._queue, self._refusals = len(episodes), [], []
        self._sampler = BatchSampler(
            self._model,
            len(self._rows),
            self._codec.end_ids,
            max_new_tokens=self._rollout.max_new_tokens,
            temperature=self._rollout.temperature,
            greedy=decoding is Decoding.GREEDY,
            cuda_graphs=self._rollout.cuda_graphs,
        )
        return ordered

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """Sample until a share of the rows has ended its turns or been answered."""
        if refusals := self._take_refusals():
            return refusals
        self._feed()
        if not self._sampler.open_count:
            wait(until, return_when=FIRST_COMPLETED)
            return []
        enough = ceil(_WAITING_SHARE * self._sampler.open_count)
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

    def _queue_prompt(self, episode: Episode, prompt: Prompt) -> None:
        self._take_seat(episode)
        self._queue.append((episode, prompt))

    def _take_seat(self, episode: Episode) -> None:
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
            uniforms[self._rows.find_row(episode)] = numbers.numpy()
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
        episode = self._rows.get_episode(turn.row)
        # The last sampled token was not fed back: its keys and values are not in the cache.
        self._rows.append(turn.row, turn.ids[:-1])
        prompt = self._seats[episode].prompt
        assert prompt is not None
        return episode, self._prompter.make_turn(prompt, turn.ids, turn.logprobs)
