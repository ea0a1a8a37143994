"""The functions of one episode in a process of their own, which can be ended at any time.

Code that holds Python's interpreter, or ends its process, then costs a step and not the run. Both sides talk in JSON,
one message for each request and each reply.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any
from weakref import WeakSet

from steptool.environments.base import ToolResult, VerdictError
from steptool.environments.functions.toolbox import EpisodeTools, load_toolbox, make_failed_result
from steptool.records import StepStatus

_LARGEST = 8 << 20
"""Largest size of a result in bytes."""
_SHARE = 0.9
"""Share of the time limit after which a coroutine is cancelled: early enough to keep the process and its state."""
_ANEW = "the next call begins with a fresh object, which knows nothing of the calls before"
_running: WeakSet[subprocess.Popen[bytes]] = WeakSet()


class _Lost(Exception):
    """The process has ended, or was ended; the text says why."""


class ProcessTools:
    """An episode's object in a process that starts at the first call. A call has `seconds`, the start included.

    When the process ends, by itself or at that limit, the state of the episode is lost: the next call starts another
    process, and there is no verdict.
    """

    def __init__(self, named: str, state: Mapping[str, Any], reference: Mapping[str, Any], seconds: float) -> None:
        self._task = {
            "functions": named,
            "state": dict(state),
            "reference": dict(reference),
        }
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._state_lost = False

    def start(self) -> None:
        """Start the process and make the object there. Raises RuntimeError where that fails."""
        try:
            reply = self._ask({"start": True})
        except _Lost as error:
            raise RuntimeError(str(error)) from None
        if "problem" in reply:
            raise RuntimeError(reply["problem"])

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """The result of a function; a failed step where the process is lost."""
        try:
            reply = self._ask({"call": name, "arguments": dict(arguments)})
        except _Lost as error:
            self._state_lost = True
            return make_failed_result(StepStatus.TOOL_ERROR, f"{error}; {_ANEW}")
        return ToolResult(StepStatus(reply["status"]), reply["observation"], reply["ends_episode"])

    def solved(self, final_answer: str | None) -> float | None:
        """The verdict of `solved`. Raises VerdictError where it fails, and where the state of the episode was lost."""
        if self._state_lost:
            raise VerdictError("the process of the tools was lost during the episode, and its state with it")
        try:
            reply = self._ask({"solved": final_answer})
        except _Lost as error:
            raise VerdictError(str(error)) from None
        if "problem" in reply:
            raise VerdictError(reply["problem"])
        verdict: float | None = reply["verdict"]
        return verdict

    def state_digest(self) -> str | None:
        """What `state_digest` returns. Raises RuntimeError where it fails."""
        return self._ask_text({"state_digest": True})

    def next_turn(self, final_answer: str) -> str | None:
        """What `next_turn` returns; None where the episode's state was lost. Raises RuntimeError where it fails."""
        return None if self._state_lost else self._ask_text({"next_turn": final_answer})

    def close(self) -> None:
        """End the process and all that it has started."""
        if self._process is None or self._pipe is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()
        self._process = self._pipe = None

    def _ask_text(self, request: Mapping[str, Any]) -> str | None:
        try:
            reply = self._ask(request)
        except _Lost as error:
            raise RuntimeError(str(error)) from None
        if "problem" in reply:
            raise RuntimeError(reply["problem"])
        text: str | None = reply["text"]
        return text

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        begin = time.monotonic()
        deadline, until = begin + self._seconds, begin + _SHARE * self._seconds
        try:
            pipe = self._pipe or self._start()
            pipe.send_bytes(json.dumps({**request, "until": until}).encode())
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                self.close()
                raise _Lost(f"no answer within {self._seconds:g} s, and the process of the tool was ended")
            reply: dict[str, Any] = json.loads(pipe.recv_bytes(_LARGEST))
        except (OSError, EOFError):
            raise _Lost(f"the process of the tool has ended with exit code {self._get_exit_code()}") from None
        return reply

    def _get_exit_code(self) -> int | None:
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):  # it has closed the connection and lives on: it is ended here
                process.wait(1.0)
        self.close()
        return process.returncode if process else None

    def _start(self) -> Connection:
        connection, child_connection = Pipe()
        number = str(child_connection.fileno())
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, number],
            stdin=subprocess.DEVNULL,
            pass_fds=[child_connection.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        _running.add(self._process)
        child_connection.close()
        self._pipe = connection
        connection.send_bytes(json.dumps(self._task).encode())
        return connection


@atexit.register
def _end_all() -> None:
    for process in list(_running):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def serve(pipe: Connection) -> None:
    """Answer requests about one episode until the other side is gone."""
    task = json.loads(pipe.recv_bytes())
    tools = EpisodeTools(load_toolbox(task["functions"]), task["state"], task["reference"])
    with suppress(EOFError, OSError):
        while request := json.loads(pipe.recv_bytes()):
            tools.seconds = request["until"] - time.monotonic()  # all processes of a machine have one such clock
            pipe.send_bytes(json.dumps(_reply(tools, request)).encode())
    with suppress(OSError):  # a tool may have closed it: the connection would say so when it is thrown away
        pipe.close()


def _reply(tools: EpisodeTools, request: Mapping[str, Any]) -> dict[str, Any]:
    if "call" in request:
        result = tools.call(request["call"], request["arguments"])
        if len(result.observation) > _LARGEST // 8:  # a character takes six bytes of JSON at most, and some are left
            result = make_failed_result(StepStatus.TOOL_ERROR, "the result is too long")
        return {"status": result.status, "observation": result.observation, "ends_episode": result.ends_episode}
    try:
        if "start" in request:
            tools.start()
            return {}
        if "state_digest" in request:
            return {"text": tools.state_digest()}
        if "next_turn" in request:
            return {"text": tools.next_turn(request["next_turn"])}
        return {"verdict": tools.solved(request["solved"])}
    except (VerdictError, RuntimeError) as error:
        return {"problem": str(error)}


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
