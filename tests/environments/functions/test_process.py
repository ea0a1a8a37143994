"""Tools in a process of their own: what hangs is ended, what exits costs a step."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steptool.config import Config
from steptool.environments.base import VerdictError, open_environment
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.records import Query, Reference, StepStatus, ToolCall

TOOLS = '''
    import os, re, subprocess, sys, time
    from enum import Enum

    class Unit(Enum):
        ONE, TEN = "one", "ten"

    class Counter:
        def __init__(self, start: int) -> None:
            self.total = start

        def add(self, number: int, unit: Unit = Unit.ONE) -> int:
            """Add a number.

            Args:
                number: the number
                unit: what it counts
            """
            self.total += number * (10 if unit is Unit.TEN else 1)
            print("noise on standard output")
            return self.total

        def hang(self) -> str:
            """Hold the interpreter."""
            re.match("(a+)+$", "a" * 60 + "!")

        def leave(self, how: str) -> str:
            """End the process.

            Args:
                how: it ends
            """
            ends = {"exit": os._exit, "kill": lambda _: os.kill(os.getpid(), 9)}
            ends.get(how, lambda _: os.closerange(3, 999))(3)

        def start(self) -> int:
            """Start a program that goes on."""
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid

        def fail(self) -> str:
            """Fail."""
            raise KeyboardInterrupt

        def long(self) -> str:
            """Return too much."""
            return "x" * (9 << 20)

        def solved(self, final_answer, reference):
            if final_answer is None:
                raise KeyError("nothing")
            return float(final_answer == reference["answer"] and self.total == 15)
'''


@pytest.fixture
def session(module: Callable[..., str]) -> Iterator[Callable[..., LimitedSession]]:
    named, sessions = f"{module(TOOLS)}:Counter", list[LimitedSession]()

    def reset(timeout: float = 30.0) -> LimitedSession:
        tools = {"functions": named, "isolation": "process", "timeout": timeout}
        config = Config.model_validate({"tools": tools})
        query = Query("q", "train", "functions", "go", (), Reference("15", environment={"state": {"start": 5}}))
        sessions.append(LimitedEnvironment(open_environment("functions", config), config.tools).reset(query))
        return sessions[-1]

    yield reset
    for each in sessions:
        each.close()


def ask(session: LimitedSession, name: str, **arguments: Any) -> str:
    return session.call(ToolCall(name, arguments)).observation


def test_an_episode_has_an_object_of_its_own_in_its_process(session: Callable[..., LimitedSession]) -> None:
    first, second = session(), session()
    assert [ask(first, "add", number=1, unit="ten"), ask(first, "add", number=0)] == ["15", "15"]
    assert ask(second, "add", number=2) == "7"
    assert (first.solved("15"), second.solved("15"), first.solved("4")) == (1.0, 0.0, 0.0)
    assert first.call(ToolCall("add", {"number": "1"})).status is StepStatus.INVALID_ARGUMENTS
    assert first.call(ToolCall("nothing", {})).status is StepStatus.UNKNOWN_TOOL
    assert "KeyboardInterrupt" in ask(first, "fail") and "the result is too long" in ask(first, "long")
    with pytest.raises(VerdictError, match="'solved' failed: KeyError: 'nothing'"):
        first.solved(None)


def test_code_that_holds_the_interpreter_is_ended_at_the_limit(session: Callable[..., LimitedSession]) -> None:
    playing = session(timeout=8.0)
    assert ask(playing, "add", number=1) == "6"
    start = time.monotonic()
    problem = json.loads(ask(playing, "hang"))["error"]
    assert problem.startswith("no answer within 7.2 s, and the process of the tool was ended; the next call begins")
    assert time.monotonic() - start < 16
    assert ask(playing, "add", number=1) == "6"
    with pytest.raises(VerdictError, match="its state with it"):
        playing.solved("15")


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("kill", -9)])
def test_a_process_that_ends_costs_a_step(session: Callable[..., LimitedSession], how: str, code: int) -> None:
    playing = session()
    result = playing.call(ToolCall("leave", {"how": how}))
    assert result.status is StepStatus.TOOL_ERROR
    assert f"the process of the tool has ended with exit code {code}; the next call begins" in result.observation
    assert ask(playing, "add", number=1) == "6"


def test_a_tool_that_closes_all_files_costs_a_step_and_prints_nothing(
    session: Callable[..., LimitedSession], capfd: pytest.CaptureFixture[str]
) -> None:
    playing = session()
    # it ends by itself, or is killed where that takes it longer than a second
    assert re.search(r"the process of the tool has ended with exit code (0|-9);", ask(playing, "leave", how="close"))
    assert ask(playing, "add", number=1) == "6"
    assert capfd.readouterr().err == ""


def test_closing_ends_what_a_tool_has_started(session: Callable[..., LimitedSession]) -> None:
    playing = session()
    number = int(ask(playing, "start"))
    playing.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(number):
        time.sleep(0.02)
    assert not _runs(number)


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
