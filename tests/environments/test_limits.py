import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from steptool.config import ToolsConfig
from steptool.environments.base import Environment, EpisodeEnd, Session, ToolResult, TransportError, VerdictError
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.records import Query, StepStatus, ToolCall

HANGING = """
import threading
from steptool.config import ToolsConfig
from steptool.environments.base import Environment, Session
from steptool.environments.limits import LimitedEnvironment
from steptool.records import Query, ToolCall

class Hanging(Environment, Session):
    blocking = True

    def reset(self, query):
        return self

    def call(self, call):
        threading.Event().wait()

session = LimitedEnvironment(Hanging(), ToolsConfig(timeout=0.05)).reset(Query("q", "train", "slow", "go", ()))
print(session.call(ToolCall("work", {})).observation)
"""
QUERY = Query("q", "train", "slow", "go", ())
CALL = ToolCall("work", {})
OK = StepStatus.OK


class WorkSession(Session):
    def __init__(self, work: Callable[[], str]) -> None:
        self.work, self.closed = work, False

    def call(self, call: ToolCall) -> ToolResult:
        return ToolResult(OK, self.work())

    def solved(self, final_answer: str | None) -> float | None:
        return float(self.work() == final_answer)

    def close(self) -> None:
        self.closed = True


class WorkEnvironment(Environment):
    name, blocking = "work", True

    def __init__(self, work: Callable[[], str]) -> None:
        self.work = work

    def reset(self, query: Query) -> WorkSession:
        return WorkSession(self.work)


def session(work: Callable[[], str], **limits: float) -> LimitedSession:
    return LimitedEnvironment(WorkEnvironment(work), ToolsConfig.model_validate(limits)).reset(QUERY)


def test_a_result_passes_unchanged() -> None:
    assert session(lambda: "fine").call(CALL) == ToolResult(OK, "fine")
    assert session(lambda: "fine").solved("fine") == 1.0


def test_a_check_that_raises_leaves_no_verdict_and_says_what_failed() -> None:
    def fail() -> str:
        raise KeyError("ordr_id")

    with pytest.raises(VerdictError, match="'solved' failed: KeyError: 'ordr_id'"):
        session(fail).solved("fine")


def test_a_long_observation_is_cut_and_says_so() -> None:
    assert session(lambda: "x" * 11, observation_limit=10).call(CALL).observation == (
        "xxxxxxxxxx... [truncated: 10 of 11 characters]"
    )
    assert session(lambda: "x" * 10, observation_limit=10).call(CALL).observation == "x" * 10


def test_a_call_that_hangs_is_a_failed_step_and_the_next_one_waits_for_it() -> None:
    release, running = threading.Event(), []

    def work() -> str:
        running.append(1)
        release.wait(10)
        return f"call {len(running)}"

    limited = session(work, timeout=0.05)
    hung = ToolResult(StepStatus.TOOL_ERROR, '{"error": "no answer within 0.05 s"}')
    assert [limited.call(CALL), limited.call(CALL)] == [hung, hung]
    with pytest.raises(VerdictError, match="gave no verdict within"):
        limited.solved("x")
    assert len(running) == 1  # what ran out of time while it waited was never begun
    release.set()
    deadline = time.monotonic() + 5
    while limited.call(CALL) == hung and time.monotonic() < deadline:
        pass
    assert limited.call(CALL).status is OK


def test_a_session_has_one_thread_and_ends_it() -> None:
    threads: list[threading.Thread] = []
    limited = session(lambda: str(threads.append(threading.current_thread())))
    assert [limited.call(CALL).status, limited.call(CALL).status, limited.solved("None")] == [OK, OK, 1.0]
    assert len(set(threads)) == 1 and threads[0] is not threading.current_thread()
    limited.close()
    threads[0].join(5)
    assert not threads[0].is_alive()


def test_a_thread_that_hung_ends_once_its_call_returns() -> None:
    release, threads = threading.Event(), []

    def work() -> str:
        threads.append(threading.current_thread())
        return str(release.wait(10))

    limited = session(work, timeout=0.05)
    assert limited.call(CALL).status is StepStatus.TOOL_ERROR
    release.set()
    limited.close()
    threads[0].join(5)
    assert not threads[0].is_alive()


def test_a_call_that_hangs_does_not_keep_the_program_from_ending() -> None:
    process = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=20, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert "no answer within" in process.stdout


def test_transport_errors_are_tried_again_as_often_as_configured() -> None:
    attempts: list[float] = []

    def work() -> str:
        attempts.append(time.monotonic())
        if len(attempts) < 3:
            raise TransportError("connection refused")
        return "there"

    assert session(work, retries=2).call(CALL) == ToolResult(OK, "there")
    assert attempts[2] - attempts[1] > 0.19  # the second wait is 0.4 s, at least half of it
    attempts.clear()
    failed = session(work, retries=1).call(CALL)
    assert (failed.status, failed.observation) == (
        StepStatus.TOOL_ERROR,
        '{"error": "the tool cannot be reached: connection refused"}',
    )
    assert len(attempts) == 2


def test_no_attempt_begins_after_the_deadline() -> None:
    attempts = []

    def work() -> str:
        attempts.append(1)
        raise TransportError("down")

    assert session(work, retries=50, timeout=0.15).call(CALL).status is StepStatus.TOOL_ERROR
    assert 1 <= len(attempts) <= 2


def test_calls_of_several_sessions_run_at_once_up_to_the_limit() -> None:
    meeting = threading.Barrier(4)
    limited = LimitedEnvironment(WorkEnvironment(lambda: str(meeting.wait(5))), ToolsConfig(concurrency=4))
    sessions = [limited.reset(QUERY) for _ in range(4)]
    calls = [limited.submit(s.call, CALL) for s in sessions]
    assert sorted(call.result().observation for call in calls) == ["0", "1", "2", "3"]


def test_no_more_calls_run_at_once_than_the_limit() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def work() -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return ""

    limited = LimitedEnvironment(WorkEnvironment(work), ToolsConfig(concurrency=2))
    calls = [limited.submit(limited.reset(QUERY).call, CALL) for _ in range(8)]
    assert {call.result().status for call in calls} == {OK}
    assert most[0] == 2


ERRORS = {
    "KeyError: 'left'": KeyError("left"),
    "TimeoutError: of the tool's own": TimeoutError("of the tool's own"),
    "SystemExit: 0": SystemExit(0),
    "GeneratorExit: ": GeneratorExit(),
    "CancelledError: ": asyncio.CancelledError(),
    "ExceptionGroup: two (1 sub-exception): ValueError: one": ExceptionGroup("two", [ValueError("one")]),
}


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(("message", "error"), ERRORS.items())
def test_what_a_session_raises_is_a_failed_step_and_ends_no_run(
    message: str, error: BaseException, blocking: bool
) -> None:
    def fail() -> str:
        raise error

    environment = WorkEnvironment(fail)
    environment.blocking = blocking
    limited = LimitedEnvironment(environment, ToolsConfig(timeout=10)).reset(QUERY)
    assert limited.call(CALL) == ToolResult(StepStatus.TOOL_ERROR, json.dumps({"error": message}))
    with pytest.raises(VerdictError, match="'solved' failed"):
        limited.solved("fine")
    limited.close()


def test_an_interrupt_that_a_tool_raises_in_its_thread_is_a_failed_step() -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    assert "KeyboardInterrupt" in session(interrupt).call(CALL).observation


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert session(lambda: "a\ud800b").call(CALL).observation == "a?b"


def test_what_is_no_result_is_a_failed_step() -> None:
    result = session(lambda: 7).call(CALL)  # type: ignore[arg-type, return-value]
    assert result.status is StepStatus.TOOL_ERROR and "in place of a ToolResult with a text" in result.observation


def test_a_result_that_ends_the_episode_still_does_after_a_cut() -> None:
    class Over(WorkSession):
        def call(self, call: ToolCall) -> ToolResult:
            return ToolResult(OK, self.work(), ends_episode=True)

    limited = LimitedSession(Over(lambda: "x" * 20), ToolsConfig(observation_limit=10), blocking=False)
    assert limited.call(CALL).ends_episode and limited.call(CALL).observation.startswith("xxxxxxxxxx...")


ENDINGS = {"exit": SystemExit(3), "interrupt": KeyboardInterrupt()}
RELEASED = threading.Event()
"""Lets calls of `block` go on, which wait without letting other coroutines run."""


class AsyncSession(Session):
    """Counts its calls; a call of `wait` takes as many seconds as its argument says."""

    def __init__(self) -> None:
        self.calls, self.closed = 0, False

    async def call(self, call: ToolCall) -> ToolResult:  # type: ignore[override]
        self.calls += 1
        await asyncio.sleep(call.arguments.get("seconds", 0))
        if call.name == "end":
            raise EpisodeEnd("it is over")
        if call.name == "end in a group":
            raise ExceptionGroup("of tasks", [ExceptionGroup("of tasks", [EpisodeEnd("it is over")])])
        if call.name == "fail in a group":
            raise ExceptionGroup("of tasks", [EpisodeEnd("it is over"), OSError("no disk")])
        if call.name in ENDINGS:
            raise ENDINGS[call.name]
        if call.name == "stop":
            asyncio.get_running_loop().stop()
        if call.name == "block":
            RELEASED.wait()
        if call.name == "fail":
            raise TimeoutError("of the tool itself")
        return ToolResult(OK, f"call {self.calls}")

    async def solved(self, final_answer: str | None) -> float | None:  # type: ignore[override]
        await asyncio.sleep(0)
        return float(self.calls)

    async def next_turn(self, final_answer: str) -> str | None:  # type: ignore[override]
        raise EpisodeEnd

    async def close(self) -> None:  # type: ignore[override]
        self.closed = True


class AsyncEnvironment(Environment):
    name = "async"

    def __init__(self, blocking: bool) -> None:
        self.blocking = blocking

    def reset(self, query: Query) -> AsyncSession:
        return AsyncSession()


@pytest.mark.parametrize("blocking", [True, False])
def test_methods_of_a_session_may_be_coroutines(blocking: bool) -> None:
    limited = LimitedEnvironment(AsyncEnvironment(blocking), ToolsConfig(timeout=0.5)).reset(QUERY)
    assert limited.call(CALL) == ToolResult(OK, "call 1")
    assert limited.call(ToolCall("end", {})) == ToolResult(OK, "it is over", ends_episode=True)
    assert limited.call(ToolCall("fail", {})).observation == '{"error": "TimeoutError: of the tool itself"}'
    assert (limited.solved("x"), limited.next_turn("x")) == (3.0, None)
    inner = limited._session
    assert isinstance(inner, AsyncSession)
    limited.close()
    assert inner.closed


@pytest.mark.parametrize("blocking", [True, False])
def test_a_coroutine_that_takes_too_long_is_cancelled_and_holds_up_no_later_call(blocking: bool) -> None:
    limited = LimitedEnvironment(AsyncEnvironment(blocking), ToolsConfig(timeout=0.3)).reset(QUERY)
    slow = limited.call(ToolCall("wait", {"seconds": 60}))
    assert slow == ToolResult(StepStatus.TOOL_ERROR, '{"error": "no answer within 0.3 s"}')
    assert limited.call(CALL) == ToolResult(OK, "call 2")


@pytest.mark.parametrize("blocking", [True, False])
def test_a_coroutine_that_ends_or_stops_its_loop_ends_no_other(blocking: bool) -> None:
    environment = LimitedEnvironment(AsyncEnvironment(blocking), ToolsConfig(timeout=5))
    for name, problem in {"exit": "SystemExit: 3", "interrupt": "KeyboardInterrupt: "}.items():
        assert environment.reset(QUERY).call(ToolCall(name, {})).observation == json.dumps({"error": problem})
    environment.reset(QUERY).call(ToolCall("stop", {}))
    assert environment.reset(QUERY).call(CALL) == ToolResult(OK, "call 1")


def test_a_coroutine_that_never_lets_go_of_its_loop_holds_up_others_for_seconds_only() -> None:
    environment = LimitedEnvironment(AsyncEnvironment(blocking=True), ToolsConfig(timeout=0.5))
    try:
        assert environment.reset(QUERY).call(ToolCall("block", {})).status is StepStatus.TOOL_ERROR
        deadline = time.monotonic() + 30
        while environment.reset(QUERY).call(CALL).status is not OK:
            assert time.monotonic() < deadline, "the blocked loop was not replaced"
    finally:
        RELEASED.set()


@pytest.mark.parametrize("blocking", [True, False])
def test_an_end_in_a_group_of_exceptions_ends_the_episode_unless_something_else_failed(blocking: bool) -> None:
    environment = LimitedEnvironment(AsyncEnvironment(blocking), ToolsConfig())
    ended = environment.reset(QUERY).call(ToolCall("end in a group", {}))
    assert ended == ToolResult(OK, "it is over", ends_episode=True)
    failed = environment.reset(QUERY).call(ToolCall("fail in a group", {}))
    assert failed.status is StepStatus.TOOL_ERROR and "OSError: no disk" in failed.observation


def test_coroutines_of_several_sessions_run_side_by_side() -> None:
    environment = LimitedEnvironment(AsyncEnvironment(blocking=True), ToolsConfig())
    start = time.monotonic()
    sessions = [environment.reset(QUERY) for _ in range(8)]
    wait = ToolCall("wait", {"seconds": 1})
    results = [future.result() for future in [environment.submit(session.call, wait) for session in sessions]]
    # One after the other the calls would take 8 s.
    assert {result.status for result in results} == {OK} and time.monotonic() - start < 5


def test_a_session_ends_the_episode_by_an_exception() -> None:
    def end() -> str:
        raise EpisodeEnd("The lamp is lit.")

    limited = session(end)
    assert limited.call(CALL) == ToolResult(OK, "The lamp is lit.", ends_episode=True)
    assert limited.next_turn("x") is None
    with pytest.raises(VerdictError, match="'solved' failed: The lamp is lit"):
        limited.solved("x")
