"""The protocol of a policy, and the one loop that plays episodes.

A policy and an environment take turns until something ends each episode. The policy receives the episodes that wait
for a turn and hands back turns as they end.

DFSDT, the depth-first search of a decision tree (ToolLLM, arXiv 2307.16789), is an inference strategy beside the
chain. A node is the conversation after some turns, a child one more turn. The search follows a path until it answers,
gives up or meets a limit; then it goes back, gives the policy a hint with the calls tried at that node, and lets it
make another turn. The order is that of ToolBench's search without a filter (DFS_woFilter), pre-order: the first
answer ends it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, TypeVar

from steptool.chat.messages import write_json
from steptool.config import FinishMode, SearchConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment, is_interrupted
from steptool.records import Query, Step, StopReason
from steptool.rollout.episode import Decoding, Episode, Exchange, PlayedEpisode, Refusal, Turn

EndedTurn = tuple[Episode, Turn | Refusal]
"""An episode that waited for a turn, and the turn; or why it gets none."""


class Policy(Protocol):
    """Makes turns for many episodes side by side. The runner calls it from one thread.

    How turns are made is the policy's business: one batch on a GPU with a cache of its own, an engine that batches
    continuously, requests over HTTP, or recorded calls. For each run the runner calls `begin` once, then `submit` and
    `poll` in turn, and `release` for each episode that has ended.
    """

    name: str
    """Name in trajectories and results."""
    capacity: int
    """Episodes that are played side by side, at most."""
    max_steps: int | None
    """Turns of an episode where its query sets no limit; None: episodes end by themselves."""
    finish: FinishMode = "tool"
    """How it ends an episode: with the tool Finish, or with an answer in text."""
    search: SearchConfig | None
    """How episodes go back and try again; None: they are chains."""
    patience: float
    """Seconds that the runner gives the environment to answer the last turns before it asks for further ones. A policy
    that decodes in batches has fuller ones if it waits a little, and with quick tools they are always the same."""

    def temperature(self, decoding: Decoding) -> float:
        """The temperature that trajectories carry."""
        ...

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> Sequence[Episode]:
        """Take the episodes of a run and return them in the order in which they should start.

        Raises ValueError, before anything is played, for an episode that cannot be.
        """
        ...

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Take in episodes that wait for their next turn."""
        ...

    def poll(self, until: Collection[Future[Any]]) -> Sequence[EndedTurn]:
        """Wait until a turn has ended and return all that have; or none, once one of the futures `until` is done.

        An environment has answered then, and the runner continues with it.
        """
        ...

    def release(self, episode: Episode) -> None:
        """Forget an episode: it waits for no further turn."""
        ...

    def close(self) -> None:
        """Give back what the policy holds."""
        ...


_HINT = """You have tried this before, and it failed. From here you made these calls, with what the tools answered:
{tried}
Look at where you are now and at what was tried, then make a call that differs from all of these."""
"""The hint at a node that has children: ToolBench's diversity prompt in other words."""


class SearchEpisode(Episode):
    """An episode that goes back where its path ends without an answer.

    It ends with the path of the answer; without one, with the last path, which counts as any episode that stopped
    without an answer (STEP_LIMIT where the budget ended it). `abandoned_turns` and `abandoned_tokens` of the trajectory
    count what was made besides. With a beam of 1 it is the chain, sample by sample.

    Sessions cannot be copied: to go back, an episode resets the environment and makes the calls of the path again, at
    most `depth` calls for each branch. Where calls act on the real world, abandoned branches have acted on it, and the
    repeated calls act again: play such environments with chains alone. The results of repeated calls are ignored.

    The trajectory does not hold the hints, though turns were sampled after them: use it for evaluation, and never train
    on its log-probabilities.
    """

    def __init__(self, *args: Any, search: SearchConfig, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._search = search
        self._branches: list[list[Step]] = [[]]
        """The turns made so far from each node of the path."""

    def record(self, exchange: Exchange) -> None:
        """Add a turn to the path, and go back if the path ends here without an answer."""
        super().record(exchange)
        self._branches[-1].append(exchange.step)
        if self._turns >= self._search.max_turns:
            self.stop = self.stop or StopReason.STEP_LIMIT
        elif self.stop is None:
            self._branches.append([])
            self.hint = ""
        elif self.stop not in (StopReason.FINISHED, StopReason.ENDED):
            self._turn_back()

    def refuse(self, refusal: Refusal) -> None:
        """Go back: the policy makes no further turn on this path."""
        super().refuse(refusal)
        self._branches.pop()
        self._turn_back()

    def _turn_back(self) -> None:
        """Go back to the node where the search goes on, if one is left."""
        gave_up = self.stop is StopReason.GAVE_UP
        depth = len(self._branches) - (self._search.give_up_levels if gave_up else 1)
        while depth >= 0 and len(self._branches[depth]) >= self._search.beam:
            depth -= 1
        if depth < 0:
            return
        del self._branches[depth + 1 :]
        self.go_back_to(depth)
        self.hint = _write_hint(self._branches[-1]) if self._search.hints else ""


def _write_hint(steps: Sequence[Step]) -> str:
    """What was tried, in the steps that made a call; empty if none did."""
    calls = [{"name": s.call.name, "arguments": s.call.arguments, "answer": s.observation} for s in steps if s.call]
    return _HINT.format(tried=write_json(calls)) if calls else ""


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
    digests: bool = False,
    progress: Progress | None = None,
) -> list[PlayedEpisode]:
    """One episode per query, in the order of the queries. Calls keep to the `limits`.

    With `digests` each step holds the digest of the environment's state before it, where the environment has one.

    A query that comes several times gets the samples `sample`, `sample + 1`, .... Raises what the policy raises:
    ValueError, before anything is played, for an episode that cannot be; later, the failure of an endpoint.
    """
    episodes = make_episodes(policy, queries, decoding, round_index, sample, digests=digests)
    limited_environment = LimitedEnvironment(environment, limits)
    try:
        if episodes:
            _Run(policy, limited_environment, policy.begin(episodes, decoding), progress).play()
    finally:
        limited_environment.close()
        _close([episode for episode in episodes if episode.is_open], side_by_side=environment.blocking)
    return [episode.finish(policy.name, policy.temperature(decoding)) for episode in episodes]


def _close(broken_off: Sequence[Episode], *, side_by_side: bool) -> None:
    """Close the sessions of episodes that were broken off; side by side they take as long as the slowest one alone."""
    close = partial(Episode.close, interrupted=is_interrupted())
    if not side_by_side:
        for episode in broken_off:
            close(episode)
    elif broken_off:
        with ThreadPoolExecutor(len(broken_off)) as pool:
            list(pool.map(close, broken_off))


def make_episodes(
    policy: Policy,
    queries: Sequence[Query],
    decoding: Decoding,
    round_index: int,
    first_sample: int,
    *,
    digests: bool = False,
) -> list[Episode]:
    """An episode for each query, chain or search; those of the same query are numbered."""
    make = partial(SearchEpisode, search=policy.search) if policy.search else Episode
    counts: Counter[str] = Counter()
    episodes: list[Episode] = []
    for query in queries:
        sample = first_sample + counts[query.query_id]
        counts[query.query_id] += 1
        settings: dict[str, Any] = {"max_steps": policy.max_steps, "finish": policy.finish, "digests": digests}
        episodes.append(make(query, sample, round_index=round_index, decoding=decoding, **settings))
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
        begun_episodes = []
        while self._waiting and self._running < self._policy.capacity:
            episode = self._waiting.popleft()
            episode.begin(self._environment)
            self._running += 1
            begun_episodes.append(episode)
        self._policy.submit(begun_episodes)

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
        finished_futures = [future for future in pending if future.done()]
        results = [(pending.pop(future), future.result()) for future in finished_futures]
        self._overdue = (self._overdue - set(finished_futures)) | pending.keys()
        return results
