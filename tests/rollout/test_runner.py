"""The loop with policies and environments that take their time."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from play_fixtures import GatedEnvironment, GatedSession, NoteCodec
from steptool.chat.codec import ChatCodec
from steptool.config import RolloutConfig, ToolsConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.policies.text_policies import ScriptedPolicy
from steptool.records import Query, StepStatus, StopReason, ToolCall, Trajectory
from steptool.rollout.episode import Decoding, Episode
from steptool.rollout.runner import make_episodes, roll_out

MakeQuery = Callable[..., Query]
FINISH_7 = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"})
LIMITS = ToolsConfig(timeout=20)


def test_a_slow_session_holds_up_no_other_episode(make_query: MakeQuery) -> None:
    queries = [make_query("slow", "go"), *(make_query(f"quick{n}", "go") for n in range(300))]
    policy = ScriptedPolicy(lambda query, sample: [ToolCall("get", {"key": "a"}), FINISH_7])
    policy.capacity = 4
    episodes = roll_out(policy, queries, GatedEnvironment(300), limits=LIMITS)
    assert [e.trajectory.steps[0].status for e in episodes] == [StepStatus.OK] * 301


@torch.inference_mode()
def test_a_row_whose_tool_answers_late_goes_on_where_it_stopped(
    random_model: PreTrainedModel, codec: ChatCodec, make_query: MakeQuery, play_locally: Any
) -> None:
    """The slow episode waits with a long row while short ones come and go, and is then the model's own."""
    queries = [make_query("slow", "please " * 60), *(make_query(f"quick{n}", "go") for n in range(12))]
    rollout = RolloutConfig(max_steps=3, max_new_tokens=20, batch_size=3, temperature=1.0)
    played: list[Trajectory] = play_locally(
        random_model,
        NoteCodec(codec.tokenizer),
        queries,
        GatedEnvironment(12),
        rollout=rollout,
        max_context=4000,
        limits=LIMITS,
    )
    assert [step.status for step in played[0].steps] == [StepStatus.OK] * 3
    for trajectory in (played[0], played[-1]):
        ids = torch.as_tensor(trajectory.input_ids.astype(np.int64))[None]
        logprobs = random_model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        own = np.concatenate([logprobs[start - 1 : end - 1].numpy() for start, end in trajectory.spans])
        np.testing.assert_allclose(trajectory.logprobs, own, atol=1e-4)


def test_samples_of_a_query_are_numbered_from_the_first(make_query: MakeQuery) -> None:
    one, other = make_query("a", "go"), make_query("b", "go")
    policy = ScriptedPolicy(lambda query, sample: [])
    episodes = make_episodes(policy, [one, other, one], Decoding.SAMPLED, 3, 5)
    assert [(e.query.query_id, e.sample, e.round_index) for e in episodes] == [("a", 5, 3), ("b", 5, 3), ("a", 6, 3)]


class BreakingSession(GatedSession):
    def next_turn(self, final_answer: str) -> str | None:
        raise RuntimeError("no user today")


class BreakingEnvironment(GatedEnvironment):
    def reset(self, query: Query) -> BreakingSession:
        return BreakingSession(query, self)


def test_what_a_session_raises_in_a_thread_ends_the_run(make_query: MakeQuery) -> None:
    policy = ScriptedPolicy(lambda query, sample: [FINISH_7])
    with pytest.raises(RuntimeError, match="no user today"):
        roll_out(policy, [make_query("quick", "go")], BreakingEnvironment(1), limits=LIMITS)


class UncheckedSession(GatedSession):
    def solved(self, final_answer: str | None) -> float:
        raise KeyError("ordr_id")


class UncheckedEnvironment(GatedEnvironment):
    def reset(self, query: Query) -> UncheckedSession:
        return UncheckedSession(query, self)


def test_a_check_that_raises_leaves_the_episode_without_a_verdict(make_query: MakeQuery) -> None:
    policy = ScriptedPolicy(lambda query, sample: [FINISH_7])
    (episodes,) = roll_out(policy, [make_query("quick", "go")], UncheckedEnvironment(1), limits=LIMITS)
    assert episodes.trajectory.solved is None
    assert episodes.trajectory.check_error == "'solved' failed: KeyError: 'ordr_id'"


class GameSession(Session):
    """A game that is over after three moves."""

    def __init__(self) -> None:
        self._moves = 0

    def call(self, call: ToolCall) -> ToolResult:
        self._moves += 1
        return ToolResult(StepStatus.OK, f"move {self._moves}", ends_episode=self._moves == 3)

    def solved(self, final_answer: str | None) -> float:
        return float(final_answer is None and self._moves == 3)


class GameEnvironment(Environment):
    name = "game"

    def reset(self, query: Query) -> GameSession:
        return GameSession()


def test_a_session_may_end_the_episode_itself(make_query: MakeQuery) -> None:
    policy = ScriptedPolicy(lambda query, sample: [*[ToolCall("get", {"key": "a"})] * 9, FINISH_7])
    (episode,) = roll_out(policy, [make_query("q", "go")], GameEnvironment(), limits=LIMITS)
    trajectory = episode.trajectory
    assert (trajectory.stop_reason, trajectory.final_answer, trajectory.solved) == (StopReason.ENDED, None, 1.0)
    assert [step.observation for step in trajectory.steps] == ["move 1", "move 2", "move 3"]
    assert trajectory.messages[-1]["role"] == "tool"


class LastingEnvironment(Environment):
    """No session is closed before all of them are closing."""

    name, blocking = "lasting", True

    def __init__(self, count: int) -> None:
        self.all_closing, self.closed = threading.Barrier(count), list[Session]()

    def reset(self, query: Query) -> "LastingSession":
        return LastingSession(self)


class LastingSession(Session):
    def __init__(self, environment: LastingEnvironment) -> None:
        self._environment = environment

    def call(self, call: ToolCall) -> ToolResult:
        return ToolResult(StepStatus.OK, "")

    def solved(self, final_answer: str | None) -> float:
        return 0.0

    def close(self) -> None:
        self._environment.all_closing.wait(10)
        self._environment.closed.append(self)


class BreakingPolicy(ScriptedPolicy):
    """Breaks off when an episode wants its second turn."""

    def submit(self, episodes: Sequence[Episode]) -> None:
        if any(episode.exchanges for episode in episodes):
            raise RuntimeError("no turn")
        super().submit(episodes)


def test_sessions_of_a_run_that_breaks_off_close_side_by_side(make_query: MakeQuery) -> None:
    environment = LastingEnvironment(6)
    policy = BreakingPolicy(lambda query, sample: [ToolCall("get", {"key": "a"}), FINISH_7])
    with pytest.raises(RuntimeError, match="no turn"):
        roll_out(policy, [make_query(f"q{n}", "go") for n in range(6)], environment, limits=LIMITS)
    assert len(environment.closed) == 6
