import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from steptool.chat.messages import FINISH_SCHEMA
from steptool.config import ToolsConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import LONG, SINGLE, draw_query
from steptool.evaluation.measures import measure_episodes
from steptool.evaluation.results import summarise_measures
from steptool.policies.text_policies import drop_last_call, list_recorded_calls, list_reference_calls, play_back
from steptool.records import FINISH, Query, Reference, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.rewards.annotators import ANNOTATORS, annotate, make_annotator

OK, UNKNOWN = StepStatus.OK, StepStatus.UNKNOWN_TOOL
UP = ToolCall(FINISH, {"return_type": "give_up_and_restart"})


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}


def put(number: int) -> ToolCall:
    return ToolCall("put", {"number": number})


def answer(text: str) -> ToolCall:
    return ToolCall(FINISH, {"return_type": "give_answer", "final_answer": text})


class JarSession(Session):
    """Numbers go into a jar. The user has a wish for each turn: what the jar should hold then; `take` comes late."""

    def __init__(self, query: Query) -> None:
        self._wishes: list[list[int]] = query.reference.environment["wishes"]
        self._jar: list[int] = []
        self._turn, self._right, self.closed = 0, True, 0

    def call(self, call: ToolCall) -> ToolResult:
        if call.arguments.get("number") == 13:
            raise RuntimeError("the jar breaks")
        if call.name == "put":
            self._jar.append(call.arguments["number"])
        else:
            self._jar.pop()
        return ToolResult(OK, str(self._jar))

    def offers(self, name: str) -> bool:
        return name == "take" and self._turn > 0

    def next_turn(self, final_answer: str) -> str | None:
        self._right &= self._jar == self._wishes[self._turn]
        self._turn += 1
        return None if self._turn == len(self._wishes) else f"Now make it {self._wishes[self._turn]}"

    def solved(self, final_answer: str | None) -> float:
        return float(self._right and self._turn == len(self._wishes))

    def close(self) -> None:
        self.closed += 1


class JarEnvironment(Environment):
    name = "jar"

    def __init__(self) -> None:
        self.sessions: list[JarSession] = []

    def reset(self, query: Query) -> JarSession:
        self.sessions.append(JarSession(query))
        return self.sessions[-1]


def jar_query(*wishes: Sequence[int], turns: Sequence[Sequence[ToolCall]] = (), max_steps: int = 0) -> Query:
    solution = [[{"name": c.name, "arguments": c.arguments} for c in turn] for turn in turns]
    return Query(
        query_id=f"q{wishes}",
        split="train",
        environment="jar",
        instruction=f"Make it {wishes[0]}",
        tools=(tool("put"), FINISH_SCHEMA),
        reference=Reference.from_json({"wishes": list(map(list, wishes)), "turns": solution, "answer": "done"}),
        max_steps=max_steps,
    )


TWO_TURNS = jar_query([1, 2], [1], turns=[[put(1), put(2)], [ToolCall("take", {})]])


@pytest.fixture
def jar() -> JarEnvironment:
    return JarEnvironment()


@pytest.fixture
def play(jar: JarEnvironment) -> Callable[..., list[Trajectory]]:
    def go(recordings: Sequence[tuple[Query, Sequence[ToolCall]]], environment: Environment = jar) -> list[Trajectory]:
        return play_back(recordings, environment, limits=ToolsConfig())

    return go


def test_each_turn_of_a_reference_ends_with_an_answer() -> None:
    assert list_reference_calls(TWO_TURNS) == [put(1), put(2), answer("done"), ToolCall("take", {}), answer("done")]
    flat = Query("q", "train", "jar", "", (), Reference(calls=(ToolCall("put", {"number": 3}),)))
    assert list_reference_calls(flat) == [put(3), answer("")]
    with pytest.raises(ValueError, match="query 'q' has no reference"):
        list_reference_calls(Query("q", "train", "jar", "", (), Reference("3")))


def test_the_last_call_is_the_last_one_that_is_no_finish() -> None:
    assert drop_last_call([put(1), put(2), answer("a"), answer("b")]) == [put(1), answer("a"), answer("b")]
    assert drop_last_call([put(1), answer("a"), put(2)]) == [put(1), answer("a")]
    assert drop_last_call([answer("a")]) == [answer("a")]


def test_a_conversation_of_two_turns(play: Any, jar: JarEnvironment) -> None:
    (t,) = play([(TWO_TURNS, list_reference_calls(TWO_TURNS))])
    assert [(s.status, s.observation) for s in t.steps] == [
        (OK, "[1]"), (OK, "[1, 2]"), (StepStatus.FINISH, ""), (OK, "[1]"), (StepStatus.FINISH, ""),
    ]  # fmt: skip
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "done", 1.0)
    assert [m["role"] for m in t.messages] == [
        "user", "assistant", "tool", "assistant", "tool", "assistant", "tool", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert t.messages[7]["content"] == "Now make it [1]"
    assert (len(t.input_ids), len(t.logprobs), t.spans, t.action_tokens) == (0, 0, (), 0)
    assert [s.closed for s in jar.sessions] == [1]


def test_a_tool_that_comes_late_is_taken_then_and_not_before(play: Any) -> None:
    take = ToolCall("take", {})
    (t,) = play([(TWO_TURNS, [take, *list_reference_calls(TWO_TURNS)])])
    assert [s.status for s in t.steps if s.call == take] == [UNKNOWN, OK]
    assert t.steps[0].observation == '{"error": "unknown tool take"}'


def test_without_its_last_call_the_task_is_not_solved(play: Any) -> None:
    (t,) = play([(TWO_TURNS, drop_last_call(list_reference_calls(TWO_TURNS)))])
    assert (t.solved, len(t.steps)) == (0.0, 4)


def test_a_recording_that_ends_without_an_answer_is_given_up(play: Any) -> None:
    (t,) = play([(TWO_TURNS, [put(1)])])
    assert [s.call for s in t.steps] == [put(1), UP]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.GAVE_UP, None, 0.0)


def test_a_recording_plays_to_its_end_unless_its_query_sets_a_limit(play: Any) -> None:
    long = [put(number) for number in range(13)]
    recordings = [(jar_query([0]), [*long, answer("x")]), (jar_query([0], max_steps=3), long)]
    assert [(len(t.steps), t.stop_reason) for t in play(recordings)] == [
        (14, StopReason.FINISHED),
        (3, StopReason.STEP_LIMIT),
    ]


def test_observations_keep_to_the_limits() -> None:
    recording = (jar_query([0]), [put(10**9)])
    (episodes,) = play_back([recording], JarEnvironment(), limits=ToolsConfig(observation_limit=5))
    assert episodes.steps[0].observation == "[1000... [truncated: 5 of 12 characters]"


def test_interleaved_runs_are_alike(play: Any) -> None:
    recordings = [(jar_query([n]), [put(n)] * (n % 4) + [answer("x")]) for n in range(1, 9)]
    alone = [play([recording])[0] for recording in recordings]
    together = play([*recordings, *recordings])
    for single, *others in zip(alone, together[:8], together[8:], strict=True):
        assert all((o.steps, o.messages, o.solved) == (single.steps, single.messages, single.solved) for o in others)
    assert [t.sample for t in together] == [0] * 8 + [1] * 8
    assert together[-1].trajectory_id == "playback-r-1-q([8],)-g1"


def test_a_recorded_episode_plays_again(play: Any) -> None:
    (first,) = play([(TWO_TURNS, list_reference_calls(TWO_TURNS))])
    (again,) = play([(TWO_TURNS, list_recorded_calls(first))])
    assert (again.steps, again.messages, again.solved) == (first.steps, first.messages, first.solved)


def test_a_call_that_raises_costs_its_step_and_sessions_are_closed(play: Any, jar: JarEnvironment) -> None:
    _, broken = play([(jar_query([1]), [put(1), answer("")]), (jar_query([2]), [put(2), put(13)])])
    assert [step.status for step in broken.steps[:2]] == [StepStatus.OK, StepStatus.TOOL_ERROR]
    assert broken.steps[1].observation == '{"error": "RuntimeError: the jar breaks"}'
    assert [s.closed for s in jar.sessions] == [1, 1]


class MeetingSession(JarSession):
    """Its calls wait for those of the other sessions."""

    meeting = threading.Barrier(3)

    def call(self, call: ToolCall) -> ToolResult:
        self.meeting.wait(5)
        return super().call(call)


class MeetingEnvironment(Environment):
    name, blocking = "meeting", True

    def reset(self, query: Query) -> MeetingSession:
        return MeetingSession(query)


def test_calls_that_may_block_run_side_by_side(play: Any) -> None:
    queries = [jar_query([n], turns=[[put(n)]]) for n in range(3)]
    assert [t.solved for t in play([(q, list_reference_calls(q)) for q in queries], MeetingEnvironment())] == [1.0] * 3


# The embedded world: what is played goes through evaluation, annotation and the file.


@pytest.fixture(scope="module")
def desk_tasks() -> list[Query]:
    return [draw_query("train", tier, f"playback.{number}") for tier in (SINGLE, LONG) for number in range(6)]


def test_the_desk_is_solved_by_its_references(play: Any, desk_tasks: list[Query], tmp_path: Path) -> None:
    episodes = play([(query, list_reference_calls(query)) for query in desk_tasks], DeskEnvironment())
    rows = measure_episodes(desk_tasks, episodes, "playback", "greedy")
    assert [(r.passed, r.recall, r.invalid_calls, r.tokens) for r in rows] == [(1.0, 1.0, 0, 0)] * 12
    assert summarise_measures(rows, draws=50)["all"]["pass_rate"] == 1.0
    for name in ANNOTATORS:
        scores = annotate(desk_tasks, episodes, make_annotator(name))
        assert len(scores) == sum(len(t.steps) for t in episodes)
    assert [s.is_solved for s in annotate(desk_tasks, episodes, make_annotator("truth")) if s.is_solved] == [1.0] * 12
    again = read_records(write_records(tmp_path / "played.parquet", episodes, Trajectory), Trajectory)
    assert [(t.steps, t.messages, t.solved) for t in again] == [(t.steps, t.messages, t.solved) for t in episodes]


def test_the_desk_is_not_solved_by_half_a_reference(play: Any, desk_tasks: list[Query]) -> None:
    long = [query for query in desk_tasks if query.tier == LONG and query.reference.environment["writes"]]
    halves = [(query, list_reference_calls(query)[: len(query.reference.calls) // 2]) for query in long]
    episodes = play(halves, DeskEnvironment())
    assert [(t.stop_reason, t.solved) for t in episodes] == [(StopReason.GAVE_UP, 0.0)] * len(long)
    assert len(long) > 3
