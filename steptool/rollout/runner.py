"""The one loop that plays episodes: a policy and an environment take turns until something ends each episode."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from steptool.config import ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import Query
from steptool.rollout.episode import Episode
from steptool.rollout.policy import EndedTurn, Policy
from steptool.rollout.search import SearchEpisode
from steptool.rollout.turns import Decoding, Exchange, PlayedEpisode, Refusal

Progress = Callable[[int, int], None]
"""Called with the number of episodes that have ended and of all."""
DEFAULT_LIMITS = ToolsConfig()
T = TypeVar("T")


def roll_out(
    policy: Policy,
    queries: Sequence[Query],
    environment: Environment,
    *,
    decoding: Decoding = Decoding.SAMPLED,
    round_index: int = -1,
    sample: int = 0,
    limits: ToolsConfig = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> list[PlayedEpisode]:
    """One episode per query, in the order of the queries. Calls keep to the `limits`.

    A query that comes several times gets the samples `sample`, `sample + 1`, .... Raises what the policy raises:
    ValueError, before anything is played, for an episode that cannot be; later, the failure of an endpoint.
    """
    episodes = make_episodes(policy, queries, decoding, round_index, sample)
    limited = LimitedEnvironment(environment, limits)
    try:
        if episodes:
            _Run(policy, limited, policy.begin(episodes, decoding), progress).play()
    finally:
        limited.close()
        for episode in episodes:
            episode.close()
    return [episode.finish(policy.name, policy.temperature(decoding)) for episode in episodes]


def make_episodes(
    policy: Policy, queries: Sequence[Query], decoding: Decoding, round_index: int, first_sample: int
) -> list[Episode]:
    """An episode for each query, chain or search; those of the same query are numbered."""
    make = partial(SearchEpisode, search=policy.search) if policy.search else Episode
    counts: Counter[str] = Counter()
    episodes: list[Episode] = []
    for query in queries:
        sample = first_sample + counts[query.query_id]
        counts[query.query_id] += 1
        episodes.append(make(query, sample, max_steps=policy.max_steps, round_index=round_index, decoding=decoding))
    return episodes


class _Run:
    """Episodes that wait to begin, wait for a turn, are answered by the environment, or end; each on its own."""

    def __init__(
        self, policy: Policy, environment: LimitedEnvironment, episodes: Sequence[Episode], progress: Progress | None
    ) -> None:
        self._policy, self._environment, self._progress = policy, environment, progress
        self._waiting, self._total = deque(episodes), len(episodes)
        self._running = self._done_count = 0
        self._answers: dict[Future[Exchange], Episode] = {}
        self._endings: dict[Future[None], Episode] = {}
        self._overdue: set[Future[Any]] = set()
        """Work of the environment that did not end within the policy's patience."""

    def play(self) -> None:
        """Play every episode to its end."""
        while self._running or self._waiting:
            # 1. Check: waiting episodes begin where ended ones have left room.
            self._begin_waiting()
            # 2. Sample: the policy makes turns, while environments answer earlier ones.
            turns = self._policy.poll([*self._answers, *self._endings])
            # 3. Step: the environment answers each turn.
            self._step(turns)
            # 4. Record: each turn and its answer join their episode, which goes on or ends.
            self._record()

    def _begin_waiting(self) -> None:
        begun = []
        while self._waiting and self._running < self._policy.capacity:
            episode = self._waiting.popleft()
            episode.begin(self._environment)
            self._running += 1
            begun.append(episode)
        self._policy.submit(begun)

    def _step(self, turns: Sequence[EndedTurn]) -> None:
        refusals = []
        for episode, turn in turns:
            if isinstance(turn, Refusal):
                episode.refuse(turn)
                refusals.append(episode)
            else:
                self._answers[self._environment.submit(episode.answer, turn)] = episode
        self._proceed(refusals)

    def _record(self) -> None:
        continuing = []
        for episode, exchange in self._take(self._answers):
            episode.record(exchange)
            continuing.append(episode)
        self._proceed(continuing)
        for _ in self._take(self._endings):
            self._running -= 1
            self._done_count += 1
            if self._progress:
                self._progress(self._done_count, self._total)

    def _proceed(self, episodes: Sequence[Episode]) -> None:
        self._policy.submit([episode for episode in episodes if episode.stop is None])
        for episode in episodes:
            if episode.stop is not None:
                self._policy.release(episode)
                self._endings[self._environment.submit(episode.end)] = episode

    def _take(self, pending: dict[Future[T], Episode]) -> list[tuple[Episode, T]]:
        """Remove and return the work that is done, in the order of its start. Raises the environment's errors."""
        wait([future for future in pending if future not in self._overdue], timeout=self._policy.patience)
        finished = [future for future in pending if future.done()]
        results = [(pending.pop(future), future.result()) for future in finished]
        self._overdue = (self._overdue - set(finished)) | pending.keys()
        return results
