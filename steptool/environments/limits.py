"""Limits on every call: time, attempts and the size of its result; and calls of many sessions at once."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

from steptool.artifacts.errors import describe_with_class
from steptool.artifacts.metrics import trace_call
from steptool.config import ToolsConfig
from steptool.environments.base import (
    Environment,
    EpisodeEnd,
    Session,
    ToolResult,
    TransportError,
    VerdictError,
    find_end,
)
from steptool.records import Query, StepStatus, ToolCall

_BACKOFF = 0.2
"""Seconds before the second attempt; each further one waits twice as long."""
_CLOSING = 5.0
"""Seconds that a session has to close."""
_CLOSING_INTERRUPTED = 1.0
"""The same where Ctrl-C ends the run."""
_STANDSTILL = 5.0
"""Seconds after which an event loop that does nothing counts as blocked."""
_FAULTS = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError, BaseExceptionGroup)
"""Exceptions of a session that do not end the run. In a thread of its own KeyboardInterrupt is one of them: no key
reaches that thread."""
_SIGNALS = (TransportError, VerdictError, EpisodeEnd)
"""Exceptions by which a session tells its runner something."""
_STARTING = threading.Lock()
T = TypeVar("T")
P = ParamSpec("P")


def is_interrupted() -> bool:
    """Whether the caller closes something because Ctrl-C has ended the run, so that it should hardly wait."""
    return isinstance(sys.exception(), KeyboardInterrupt)


class LimitedEnvironment:
    """An environment whose sessions keep to the limits of the configuration."""

    def __init__(self, environment: Environment, limits: ToolsConfig) -> None:
        self._environment, self._limits = environment, limits
        self._pool = ThreadPoolExecutor(limits.concurrency) if environment.blocking else None

    def reset(self, query: Query) -> LimitedSession:
        """A session for the query."""
        environment = self._environment
        return LimitedSession(environment.reset(query), self._limits, environment.blocking, environment.name)

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do some work with a session of its own: in a thread where calls may block, else at once.

        Raises what the work raises if it is done at once.
        """
        if self._pool:
            return self._pool.submit(work, *args, **kwargs)
        result: Future[T] = Future()
        result.set_result(work(*args, **kwargs))
        return result

    def close(self) -> None:
        """Wait for work that has begun, and drop what has not. Where Ctrl-C ends the run, wait for nothing.

        The environment itself stays open.
        """
        if self._pool:
            self._pool.shutdown(wait=not is_interrupted(), cancel_futures=True)


class LimitedSession(Session):
    """A session whose calls end in time, are tried again where that does no harm, and return a text of limited size.

    A call that runs out of time is a failed step. A coroutine is cancelled then. Other code cannot be stopped. It runs
    on, and a later call of the session waits for it, within its own time limit, so that two calls of a session never
    run at once.
    """

    def __init__(self, session: Session, limits: ToolsConfig, blocking: bool, environment: str = "") -> None:
        self._session, self._limits, self._environment = session, limits, environment
        self._worker = _Worker() if blocking else None

    def call(self, call: ToolCall) -> ToolResult:
        """The session's result, or a failed result that says which limit was exceeded or what was raised."""
        with trace_call(call.name, self._environment) as outcome:
            result, failure = self._try_call(call)
            outcome |= {"status": result.status, "error": failure}
        return self._cut(result)

    def _try_call(self, call: ToolCall) -> tuple[ToolResult, str]:
        """The result of the attempts, and the kind of failure; empty for a call that went well."""
        deadline = time.monotonic() + self._limits.timeout
        for attempt in range(self._limits.retries + 1):
            try:
                result = self._attempt(call, deadline)
                return result, "" if result.status is StepStatus.OK else str(result.status)
            except OutOfTime:
                return ToolResult.failure(
                    StepStatus.TOOL_ERROR, f"no answer within {self._limits.timeout:g} s"
                ), "timeout"
            except _SessionError as error:
                return ToolResult.failure(StepStatus.TOOL_ERROR, str(error)), "exception"
            except TransportError as error:
                problem = str(error)
            wait = _BACKOFF * 2**attempt * random.uniform(0.5, 1.0)
            if attempt == self._limits.retries or time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        return ToolResult.failure(StepStatus.TOOL_ERROR, f"the tool cannot be reached: {problem}"), "unreachable"

    def offers(self, name: str) -> bool:
        """Whether the session takes calls of a tool that the query does not list."""
        try:
            return self._session.offers(name)
        except _FAULTS:
            return False

    def state_digest(self) -> str | None:
        """The session's digest of its state; None if it has none. Raises RuntimeError where it cannot be had."""
        try:
            return self._run_within(self._limits.timeout, self._session.state_digest)
        except (OutOfTime, _SessionError, TransportError, EpisodeEnd) as error:
            reason = str(error) or f"no answer within {self._limits.timeout:g} s"
            raise RuntimeError(f"'state_digest' of the environment's session failed: {reason}") from error

    def solved(self, final_answer: str | None) -> float | None:
        """The session's verdict; None if it has none. Raises VerdictError, and nothing else, where its check fails."""
        try:
            return self._run_within(self._limits.timeout, lambda: self._session.solved(final_answer))
        except OutOfTime:
            raise VerdictError(f"'solved' gave no verdict within {self._limits.timeout:g} s") from None
        except (_SessionError, TransportError, EpisodeEnd) as error:
            raise VerdictError(f"'solved' failed: {error}") from error

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says next; None if the session ends the episode, and if it does not answer in time.

        Raises RuntimeError where the session fails.
        """
        try:
            return self._run_within(self._limits.timeout, lambda: self._session.next_turn(final_answer))
        except (OutOfTime, TransportError, EpisodeEnd):
            return None
        except _SessionError as error:
            raise RuntimeError(f"'next_turn' of the environment's session failed: {error}") from error

    def close(self, *, interrupted: bool = False) -> None:
        """Close the session, and stop waiting if that takes too long; soon, where Ctrl-C ends the run.

        A thread that closes for another one does not see that, and says whether it was `interrupted`.
        """
        seconds = _CLOSING_INTERRUPTED if interrupted or is_interrupted() else _CLOSING
        try:
            self._run_within(seconds, self._session.close)
        except (OutOfTime, _SessionError, *_SIGNALS):
            return
        finally:
            if self._worker:
                self._worker.end()

    def _attempt(self, call: ToolCall, deadline: float) -> ToolResult:
        try:
            result = self._run_within(deadline - time.monotonic(), lambda: self._session.call(call))
        except EpisodeEnd as end:
            return ToolResult(StepStatus.OK, str(end), ends_episode=True)
        if not isinstance(result, ToolResult) or not isinstance(result.observation, str):
            kind = type(result).__name__
            raise _SessionError(f"the environment returned {kind} in place of a ToolResult with a text")
        return result

    def _run_within(self, seconds: float, work: Callable[[], T]) -> T:
        """What the work returns; a coroutine is awaited. Raises OutOfTime, one of _SIGNALS, or _SessionError for other
        errors."""

        def finish() -> T:
            try:
                result = work()
                return run_coroutine(result, seconds) if inspect.isawaitable(result) else result
            except BaseExceptionGroup as group:
                if end := find_end(group):
                    raise end from group
                raise

        if self._worker:
            return self._worker.run(finish, seconds)
        try:
            return finish()
        except (OutOfTime, _SessionError, *_SIGNALS):
            raise
        except _FAULTS as error:
            raise _SessionError(describe_with_class(error)) from error

    def _cut(self, result: ToolResult) -> ToolResult:
        """The result with an observation of limited size that can be written to a file."""
        text, limit = result.observation, self._limits.observation_limit
        if len(text) > limit:
            text = f"{text[:limit]}... [truncated: {limit} of {len(text)} characters]"
        return replace(result, observation=text.encode("utf-8", "replace").decode("utf-8"))


class OutOfTime(Exception):
    """The session did not answer in time."""


class _SessionError(Exception):
    """The session raised something; the text describes it."""


def run_coroutine(work: Awaitable[T], seconds: float) -> T:
    """What `work` returns or raises. Raises OutOfTime after that time, and cancels the work."""

    async def finish() -> T:
        try:
            return await work
        except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop of all sessions
            raise _SessionError(describe_with_class(error)) from error

    loop = _get_event_loop()
    future = asyncio.run_coroutine_threadsafe(finish(), loop)
    try:
        return future.result(max(0.0, seconds))
    except TimeoutError:
        if future.done():  # the work itself has raised it
            raise
        future.cancel()
        _drop_if_blocked(loop)
        raise OutOfTime from None


_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""The loop of all coroutines of a process, by its id: a process that was forked has none yet."""


def _get_event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, in a thread of its own that does not keep the program from ending."""
    with _STARTING:
        process = os.getpid()
        if process not in _loops:
            _loops[process] = asyncio.new_event_loop()
            threading.Thread(target=_run_for_ever, args=[_loops[process]], daemon=True).start()
        return _loops[process]


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    while True:  # a coroutine may stop the loop
        loop.run_forever()


def _drop_if_blocked(loop: asyncio.AbstractEventLoop) -> None:
    """Let later calls have another loop where a coroutine waits without `await`, so that this one stands still."""
    moves = threading.Event()
    loop.call_soon_threadsafe(moves.set)
    if moves.wait(_STANDSTILL):
        return
    with _STARTING:
        if _loops.get(os.getpid()) is loop:
            del _loops[os.getpid()]


class _Worker:
    """A thread that does pieces of work one after the other. It does not keep the program from ending."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def run(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns or raises. Raises OutOfTime after that time; work not begun by then never begins."""
        future: Future[T] = Future()
        self._work.put(lambda: _settle(future, work))
        try:
            return future.result(max(0.0, seconds))
        except TimeoutError:  # of the future: what the work raises has another class
            future.cancel()
            raise OutOfTime from None

    def end(self) -> None:
        """Let the thread end once its work is done."""
        self._work.put(None)

    def _serve(self) -> None:
        while work := self._work.get():
            work()


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    """Do the work that the future stands for, unless the future was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except (OutOfTime, _SessionError, *_SIGNALS) as error:
        future.set_exception(error)
    except BaseException as error:
        future.set_exception(_SessionError(describe_with_class(error)))
