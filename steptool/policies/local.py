"""Episodes: a policy and an environment take turns until something ends them."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec
from steptool.chat.formats import ParsedTurn
from steptool.config import RolloutConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.generation import BatchSampler, Feed, Turn
from steptool.records import Query, StopReason, Trajectory
from steptool.rollout.episode import Dialogue, opening, shown_name

DEFAULT_LIMITS = ToolsConfig()
_WAITING_SHARE = 0.2
"""Share of the running episodes whose turns must have ended before the environment answers them together."""
_SHRINK_SHARE = 0.75
"""Share of rows in use below which the batch is made smaller."""

Progress = Callable[[int, int], None]
"""Called with the number of finished episodes and of all."""
E = TypeVar("E", bound="Episode")


def roll_out(
    model: PreTrainedModel,
    codec: ChatCodec,
    queries: Sequence[Query],
    environment: Environment,
    *,
    rollout: RolloutConfig,
    max_context: int,
    greedy: bool,
    seed: int,
    policy: str,
    round: int = -1,
    sample: int = 0,
    limits: ToolsConfig = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """One episode per query, in the order of the queries. Calls keep to the `limits`.

    What an episode samples depends on the seed, the round, its query and its sample alone, not on the batch or shard
    that it runs in (up to rounding). A query that is given several times gets the samples `sample`, `sample + 1`, ....
    Raises ValueError, before anything is sampled, if a prompt leaves no room for a turn in `max_context` tokens.
    """
    make = partial(Episode, codec=codec, rollout=rollout, max_context=max_context)
    episodes = prepared(make, codec, queries, rollout, max_context, f"{seed}/{round}", sample)
    play(model, codec, episodes, LimitedEnvironment(environment, limits), rollout, greedy, progress)
    return [e.trajectory(policy, round, rollout.temperature) for e in episodes]


def prepared(
    make: Callable[..., E],
    codec: ChatCodec,
    queries: Sequence[Query],
    rollout: RolloutConfig,
    max_context: int,
    key: str,
    sample: int,
) -> list[E]:
    """make(query, prompt, key, sample) of each query; `key`, the query and its sample decide what it draws.

    Raises ValueError if a prompt leaves no room for a turn.
    """
    prompts = [codec.prompt_ids(opening(q), q.tools) for q in queries]
    _check_room(queries, prompts, rollout, max_context)
    given: Counter[str] = Counter()
    episodes = []
    for query, prompt in zip(queries, prompts, strict=True):
        number = sample + given[query.query_id]
        given[query.query_id] += 1
        episodes.append(make(query, prompt, f"{key}/{query.query_id}/{number}", number))
    return episodes


def play(
    model: PreTrainedModel,
    codec: ChatCodec,
    episodes: Sequence[Episode],
    guard: LimitedEnvironment,
    rollout: RolloutConfig,
    greedy: bool,
    progress: Progress | None,
) -> None:
    """Play the episodes to their end, `rollout.batch_size` of them side by side."""
    training = model.training
    model.eval()
    try:
        _run(model, codec, episodes, guard, rollout, greedy, progress)
    finally:
        model.train(training)
        for episode in episodes:
            episode.close()


def _run(
    model: PreTrainedModel,
    codec: ChatCodec,
    episodes: Sequence[Episode],
    guard: LimitedEnvironment,
    rollout: RolloutConfig,
    greedy: bool,
    progress: Progress | None,
) -> None:
    waiting = deque(sorted(episodes, key=lambda e: len(e.ids), reverse=True))
    rows: list[Episode | None] = [None] * min(rollout.batch_size, len(episodes))
    sampler = BatchSampler(
        model,
        len(rows),
        codec.end_ids,
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        greedy=greedy,
    )
    turns: list[Turn] = []
    done = 0
    while True:
        feeds = []
        acting = [(turn.row, episode) for turn in turns if (episode := rows[turn.row])]
        for turn, (_, episode) in zip(turns, acting, strict=True):
            episode.read(turn)
        guard.map(Episode.act, [episode for _, episode in acting])
        stopped = []
        for row, episode in acting:
            if episode.goes_on():
                feeds.append(episode.feed(row))
            else:
                stopped.append(episode)
                rows[row] = None
        guard.map(Episode.end, stopped)
        done += len(stopped)
        if progress and stopped:
            progress(done, len(episodes))
        for row, running in enumerate(rows):
            if running is None and waiting:
                fresh = rows[row] = waiting.popleft()
                fresh.begin(guard)
                feeds.append(fresh.feed(row))
        sampler.feed(feeds)
        live = [row for row, running in enumerate(rows) if running]
        if not live:
            return
        if len(live) < _SHRINK_SHARE * len(rows):
            sampler.keep(live)
            rows = [rows[row] for row in live]
        enough = ceil(_WAITING_SHARE * len(live))
        while sampler.ended < enough:
            sampler.step()
        turns = sampler.take()


class Episode:
    """One episode in the making: a dialogue and its tokens."""

    def __init__(
        self,
        query: Query,
        prompt: Sequence[int],
        key: str,
        sample: int,
        *,
        codec: ChatCodec,
        rollout: RolloutConfig,
        max_context: int,
    ) -> None:
        self.sample, self.ids = sample, list(prompt)
        self.dialogue = Dialogue(query, rollout.max_steps)
        self.codec = codec
        self._max_context, self._max_new = max_context, rollout.max_new_tokens
        self._random = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))
        self._cached: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._parsed = ParsedTurn(None, "")

    def begin(self, guard: LimitedEnvironment) -> None:
        """Reset the environment for this episode's query."""
        self.dialogue.begin(guard)

    def feed(self, row: int) -> Feed:
        """The tokens that the model has not seen yet."""
        ids = self.prompt()
        start = min(_common(self._cached, ids), len(ids) - 1)
        self._cached = list(ids)
        uniforms = torch.rand(self._max_new, generator=self._random).numpy()
        return Feed(row, start, ids[start:], uniforms)

    def prompt(self) -> list[int]:
        """All tokens that the next turn is sampled after."""
        return self.ids

    def read(self, turn: Turn) -> None:
        """Take the tokens of a sampled turn and read its call."""
        start = len(self.ids)
        self.ids += turn.ids
        # The last sampled token was not fed back: its keys and values are not in the cache.
        self._cached += turn.ids[:-1]
        self._spans.append((start, len(self.ids)))
        self._logprobs.append(turn.logprobs)
        self._parsed = self.codec.parse(turn.ids)

    def act(self) -> None:
        """Let the environment, and after a final answer the user, answer the turn."""
        self.dialogue.act(self._parsed)

    def goes_on(self) -> bool:
        """Write the turn and what answers it down, and say whether the episode goes on."""
        self.dialogue.note(self._parsed)
        if self.dialogue.stop is None and not self._extended():
            self.dialogue.stop = StopReason.CONTEXT_LIMIT
        return self.dialogue.stop is None

    def end(self) -> None:
        """Ask for the verdict and close the session."""
        self.dialogue.end()

    def close(self) -> None:
        """Close the session if it is open."""
        self.dialogue.close()

    def trajectory(self, policy: str, round: int, temperature: float) -> Trajectory:
        """The episode as it ended."""
        ids, logprobs = np.asarray(self.ids, dtype=np.int32), np.concatenate(self._logprobs)
        return self.dialogue.trajectory(policy, round, self.sample, temperature, ids, self._spans, logprobs)

    def back_to(self, turns: int) -> None:
        """Go on from where the first `turns` turns had been made, in a session that is given their calls again."""
        self.ids = self.ids[: self._spans[turns][0]]
        del self._spans[turns:], self._logprobs[turns:]
        self.dialogue.back_to(turns)

    def answer_ids(self, user_turn: str | None) -> list[int]:
        """Tokens from the end of the last turn to the next one: its observation and what the user says then."""
        step, closed = self.dialogue.last, self.ids[self._spans[-1][1] - 1] in self.codec.end_ids
        return self.codec.observation_ids(step.observation, shown_name(step), user_turn=user_turn, closed=closed)

    def has_room(self, tokens: int) -> bool:
        """Whether a whole turn fits behind so many tokens."""
        return tokens + self._max_new <= self._max_context

    def _extended(self) -> bool:
        """Append what answers the turn, if a whole turn has room behind it."""
        observation = self.answer_ids(self.dialogue.user_turn)
        if not self.has_room(len(self.ids) + len(observation)):
            return False
        self.ids += observation
        return True


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _check_room(
    queries: Sequence[Query], prompts: Sequence[Sequence[int]], rollout: RolloutConfig, max_context: int
) -> None:
    for query, prompt in zip(queries, prompts, strict=True):
        if len(prompt) + rollout.max_new_tokens > max_context:
            raise ValueError(
                f"query '{query.query_id}': its prompt of {len(prompt)} tokens and a turn of {rollout.max_new_tokens} "
                f"tokens (rollout.max_new_tokens) do not fit policy.max_context = {max_context}; raise max_context or "
                "leave the query out"
            )
