"""One episode by hand: its turns are given to it one after the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steptool.chat.call_format import ParsedTurn
from steptool.config import ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import Query, StepStatus, StopReason, ToolCall
from steptool.rollout.episode import Decoding, Episode, Refusal, Turn, TurnCost, TurnTokens, make_episode_id

MakeQuery = Callable[..., Query]
GET = ToolCall("get", {"key": "a"})
SEVEN = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"})


def turn(call: ToolCall | None, context: list[int], ids: list[int], money: float | None = None) -> Turn:
    tokens = TurnTokens(context, ids, -np.arange(1, len(ids) + 1, dtype=np.float32))
    return Turn(ParsedTurn(call, "text", "no tool call"), TurnCost(len(ids), len(context), money), tokens)


@pytest.fixture
def begin(make_query: MakeQuery) -> Callable[..., Episode]:
    def go(environment: Environment, **settings: Any) -> Episode:
        episode = Episode(make_query("q", "go"), **{"max_steps": 8, **settings})
        episode.begin(LimitedEnvironment(environment, ToolsConfig()))
        return episode

    return go


def test_tokens_and_costs_of_the_turns_make_the_trajectory(begin: Any, environment: Environment) -> None:
    episode = begin(environment, sample=2, round_index=3)
    for number, sampled_turn in enumerate([turn(GET, [1, 2], [3, 4], 0.25), turn(SEVEN, [5], [6, 7, 8], 0.5)]):
        assert episode.stop is None and len(episode.exchanges) == number
        episode.record(episode.answer(sampled_turn))
    episode.end()
    played = episode.finish("p", 0.7)
    trajectory = played.trajectory
    assert (trajectory.trajectory_id, trajectory.temperature, trajectory.round) == ("p-r3-q-s2", 0.7, 3)
    assert trajectory.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and trajectory.spans == ((2, 4), (5, 8))
    assert trajectory.logprobs.tolist() == [-1, -2, -1, -2, -3]
    assert played.cost == TurnCost(5, 3, 0.75) and played.refusal == ""
    assert (trajectory.stop_reason, trajectory.final_answer, trajectory.solved) == (StopReason.FINISHED, "7", 1.0)


def test_what_was_abandoned_is_counted_and_paid_for(begin: Any, environment: Environment) -> None:
    episode = begin(environment)
    episode.record(episode.answer(turn(GET, [1, 2], [3, 4])))
    episode.record(episode.answer(turn(None, [5], [6, 7])))
    episode.go_back_to(1)
    episode.record(episode.answer(turn(SEVEN, [5], [8])))
    episode.end()
    played = episode.finish("p", 1.0)
    assert played.trajectory.input_ids.tolist() == [1, 2, 3, 4, 5, 8]
    assert (played.trajectory.abandoned_turns, played.trajectory.abandoned_tokens) == (1, 2)
    assert played.cost == TurnCost(5, 4, None)
    first, second = environment.sessions  # type: ignore[attr-defined]
    assert [call.name for call in first.calls] == [call.name for call in second.calls] == ["get"]


def test_a_refusal_ends_an_episode_before_its_first_turn(begin: Any, environment: Environment) -> None:
    episode = begin(environment)
    episode.refuse(Refusal(StopReason.REFUSED, "not this one", TurnCost(0, 0, 0.0)))
    episode.end()
    played = episode.finish("p", 0.0)
    assert (played.refusal, played.cost) == ("not this one", TurnCost(0, 0, 0.0))
    assert (played.trajectory.steps, played.trajectory.stop_reason) == ([], StopReason.REFUSED)
    assert len(played.trajectory.input_ids) == len(played.trajectory.logprobs) == 0


def test_without_a_limit_an_episode_goes_on(begin: Any, environment: Environment) -> None:
    limited, endless = begin(environment, max_steps=2), begin(environment, max_steps=None)
    for episode, expected in ((limited, StopReason.STEP_LIMIT), (endless, None)):
        for _ in range(2):
            episode.record(episode.answer(turn(GET, [], [1])))
        assert episode.stop is expected
        assert [exchange.step.status for exchange in episode.exchanges] == [StepStatus.OK] * 2


def test_no_two_episodes_of_a_policy_and_round_have_the_same_id() -> None:
    ids = [make_episode_id("p", 0, query, d, sample) for query in "ab" for d in Decoding for sample in range(3)]
    assert len(set(ids)) == 12 and ids[0] == "p-r0-a-g0"
