"""A policy that plays recorded calls: environments, annotators and evaluation end to end without a language model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from steptool.chat.call_format import ParsedTurn, answer_of
from steptool.chat.messages import GIVE_ANSWER, GIVE_UP
from steptool.config import FinishMode, ToolsConfig
from steptool.environments.base import Environment
from steptool.records import FINISH, Query, ToolCall, Trajectory
from steptool.rollout.episode import Decoding, Episode, Turn
from steptool.rollout.runner import EndedTurn, Policy, roll_out

PLAYBACK = "playback"
_CAPACITY = 128
_GIVE_UP = ToolCall(FINISH, {"return_type": GIVE_UP})


class ScriptedPolicy(Policy):
    """Makes the calls that `calls_of` gives for a query and the number of a sample, then gives up.

    It plays all of them, unless a step limit of the query itself ends the episode earlier.
    """

    capacity, max_steps, search, patience = _CAPACITY, None, None, 0.0

    def __init__(
        self,
        calls_of: Callable[[Query, int], Sequence[ToolCall]],
        name: str = PLAYBACK,
        finish: FinishMode = "tool",
    ) -> None:
        self.name, self.finish, self._calls_of = name, finish, calls_of
        self._calls: dict[Episode, Iterator[ToolCall]] = {}
        self._waiting: list[Episode] = []

    def temperature(self, decoding: Decoding) -> float:
        """0: nothing is sampled."""
        return 0.0

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> Sequence[Episode]:
        """Look up the calls of every episode. Raises what `calls_of` raises where there is nothing to play."""
        self._waiting = []
        self._calls = {episode: iter(self._calls_of(episode.query, episode.sample)) for episode in episodes}
        return episodes

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Take in episodes that wait for their next call."""
        self._waiting += episodes

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """The next call of every episode that waits."""
        if not self._waiting:
            wait(until, return_when=FIRST_COMPLETED)
        waiting, self._waiting = self._waiting, []
        return [(episode, self._make_turn(next(self._calls[episode], _GIVE_UP))) for episode in waiting]

    def release(self, episode: Episode) -> None:
        """Forget the rest of the calls."""
        del self._calls[episode]

    def close(self) -> None:
        """Do nothing, because the policy holds no resources."""

    def _make_turn(self, call: ToolCall) -> Turn:
        answer = answer_of(call) if self.finish == "text" and call.name == FINISH else None
        return Turn(ParsedTurn(call, "") if answer is None else ParsedTurn(None, answer, answer=answer))


def play_back(
    recordings: Iterable[tuple[Query, Sequence[ToolCall]]],
    environment: Environment,
    *,
    limits: ToolsConfig,
    policy: str = PLAYBACK,
) -> list[Trajectory]:
    """One episode per recording, in their order. The recordings of one query become its samples 0, 1 and so on."""
    queries, calls = [], defaultdict(list)
    for query, recorded in recordings:
        queries.append(query)
        calls[query.query_id].append(recorded)
    scripted = ScriptedPolicy(lambda query, sample: calls[query.query_id][sample], policy)
    episodes = roll_out(scripted, queries, environment, decoding=Decoding.GREEDY, limits=limits)
    return [episode.trajectory for episode in episodes]


def has_reference_calls(query: Query) -> bool:
    """Whether the query has a reference solution. An empty list of calls counts: the solution is to do nothing."""
    return query.reference.turns is not None or query.reference.calls is not None


def reference_calls(query: Query) -> list[ToolCall]:
    """The calls of the reference solution, each turn of the user closed by a Finish with the reference's answer.

    `reference.turns` holds the calls of each turn, `reference.calls` those of the only one. Raises ValueError for a
    query with neither.
    """
    reference = query.reference
    if not has_reference_calls(query):
        raise ValueError(f"query '{query.query_id}' has no reference.turns or reference.calls to play back")
    turns = (reference.calls or (),) if reference.turns is None else reference.turns
    finish = ToolCall(FINISH, {"return_type": GIVE_ANSWER, "final_answer": reference.answer or ""})
    return [call for turn in turns for call in (*turn, finish)]


def recorded_calls(trajectory: Trajectory) -> list[ToolCall]:
    """The calls of a trajectory, its Finish included; steps without a readable call are left out."""
    return [step.call for step in trajectory.steps if step.call]


def without_last_call(calls: Sequence[ToolCall]) -> list[ToolCall]:
    """The calls without the last one before Finish. They should no longer solve the task."""
    numbers = [number for number, call in enumerate(calls) if call.name != FINISH]
    return [call for number, call in enumerate(calls) if number not in numbers[-1:]]
