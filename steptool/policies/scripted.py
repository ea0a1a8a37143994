"""A policy that plays recorded calls: environments, annotators and evaluation end to end without a language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from steptool.chat.finish import GIVE_ANSWER, GIVE_UP
from steptool.chat.formats import ParsedTurn
from steptool.config import RolloutConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import FINISH, Query, ToolCall, Trajectory
from steptool.rollout.episode import Dialogue

POLICY = "playback"
_UP = ToolCall(FINISH, {"return_type": GIVE_UP})


def reference_calls(query: Query) -> list[ToolCall]:
    """The calls of the reference solution, each turn of the user closed by a Finish with the reference's answer.

    reference["turns"] holds the calls of each turn, reference["calls"] those of the only one. Raises ValueError for a
    query with neither.
    """
    reference = query.reference
    if "turns" not in reference and "calls" not in reference:
        raise ValueError(f"query '{query.query_id}' has no reference['turns'] or reference['calls'] to play back")
    turns = reference["turns"] if "turns" in reference else [reference["calls"]]
    finish = ToolCall(FINISH, {"return_type": GIVE_ANSWER, "final_answer": reference.get("answer") or ""})
    return [call for turn in turns for call in (*(ToolCall(c["name"], c["arguments"]) for c in turn), finish)]


def recorded_calls(trajectory: Trajectory) -> list[ToolCall]:
    """The calls of a trajectory, its Finish included; steps without a readable call are left out."""
    return [step.call for step in trajectory.steps if step.call]


def without_last_call(calls: Sequence[ToolCall]) -> list[ToolCall]:
    """The same calls without the last one that is no Finish: what should no longer solve the task."""
    numbers = [number for number, call in enumerate(calls) if call.name != FINISH]
    return [call for number, call in enumerate(calls) if number not in numbers[-1:]]


def play_back(
    recordings: Iterable[tuple[Query, Sequence[ToolCall]]],
    environment: Environment,
    *,
    rollout: RolloutConfig,
    limits: ToolsConfig,
    policy: str = POLICY,
) -> list[Trajectory]:
    """One episode per recording, in their order, as `roll_out` would have made it, but without tokens.

    `rollout.batch_size` episodes go on side by side, a call of each in turn. An episode that is still open when its
    recording has ended is given up. A query that is given several times gets the samples 0, 1, ....
    """
    guard, given = LimitedEnvironment(environment, limits), Counter[str]()
    played: list[Trajectory] = []
    waiting = iter(recordings)
    while batch := [_Player(q, calls, rollout) for q, calls in islice(waiting, rollout.batch_size)]:
        _play(batch, guard)
        for player in batch:
            name = player.dialogue.query.query_id
            played.append(player.dialogue.trajectory(policy, -1, given[name], 0.0))
            given[name] += 1
    return played


class _Player:
    """One recording on its way through the environment."""

    def __init__(self, query: Query, calls: Sequence[ToolCall], rollout: RolloutConfig) -> None:
        self.dialogue = Dialogue(query, rollout.max_steps)
        self._calls = iter(calls)

    def step(self) -> None:
        """The next call, and what comes of it."""
        call = next(self._calls, _UP)
        turn = ParsedTurn(call, "")
        self.dialogue.act(turn)
        self.dialogue.note(turn)
        if self.dialogue.stop:
            self.dialogue.end()


def _play(players: Sequence[_Player], guard: LimitedEnvironment) -> None:
    try:
        for player in players:
            player.dialogue.begin(guard)
        going = list(players)
        while going:
            guard.map(_Player.step, going)
            going = [player for player in going if player.dialogue.stop is None]
    finally:
        for player in players:
            player.dialogue.close()
