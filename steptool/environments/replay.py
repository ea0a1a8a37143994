"""An environment without live tools, which answers calls with the responses that were recorded for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from steptool.config import ToolsConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, Trajectory
from steptool.storage.sqlite import open_database

NEVER_RECORDED = "No response is recorded for this call."
UNKNOWN_FUNCTION = "No such function name"
_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    id INTEGER PRIMARY KEY,  -- in the order of first recording
    call TEXT NOT NULL,
    response BLOB NOT NULL,  -- SHA-256 of status and observation
    status TEXT NOT NULL,
    observation TEXT NOT NULL,
    times INTEGER NOT NULL DEFAULT 1,
    UNIQUE (call, response)
)"""
_ADD = """
INSERT INTO responses (call, response, status, observation) VALUES (?, ?, ?, ?)
ON CONFLICT (call, response) DO UPDATE SET times = times + 1"""
_GET = "SELECT status, observation FROM responses WHERE call = ? ORDER BY times DESC, id LIMIT 1"


def make_call_key(tool: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """Key of a call: SHA-256, in hex, of the tool's names and the arguments as canonical JSON (keys sorted)."""
    text = json.dumps([*tool, dict(arguments)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Responses:
    """Recorded responses by call. A call with several responses gets the most frequent one, and among equally frequent
    ones the first recorded.

    If a process is killed while it adds responses, the file has all of them or none (`steptool.storage.sqlite`).
    """

    def __init__(self, path: str | Path = "") -> None:
        """Open the file, or make it if it is missing; without a path, use memory. Raises sqlite3.Error for another
        file."""
        self._database = open_database(path, _TABLE)
        self._lock = threading.Lock()

    def get(self, call: str) -> ToolResult | None:
        """The response of the call with this key; None if none was recorded."""
        with self._lock:
            rows = self._database.execute(_GET, (call,)).fetchall()
        return next((ToolResult(StepStatus(status), observation) for status, observation in rows), None)

    def add(self, recorded: Iterable[tuple[str, ToolResult]]) -> int:
        """Record responses by the keys of their calls, all or none; other writers wait. Returns their number."""
        rows = ((call, _digest(result), str(result.status), result.observation) for call, result in recorded)
        with self._lock, self._database:
            return self._database.executemany(_ADD, rows).rowcount

    def calls(self) -> int:
        """Number of calls with a response."""
        with self._lock:
            return int(self._database.execute("SELECT count(DISTINCT call) FROM responses").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


def _digest(result: ToolResult) -> bytes:
    return hashlib.sha256(f"{result.status}\n{result.observation}".encode()).digest()


class ReplayEnvironment(Environment):
    """Answers each call with the response that was recorded for it."""

    name = "replay"
    needs_recordings = True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """An environment that answers as the recordings do."""
        return cls(recordings)

    def __init__(self, recordings: Iterable[Trajectory]) -> None:
        self._responses = Responses()
        pairs = (pair for t in recordings for pair in list_answered_calls(t))
        self._responses.add((make_call_key([call.name], call.arguments), result) for call, result in pairs)

    def reset(self, query: Query) -> ReplaySession:
        """A session for the query."""
        return ReplaySession(query, self._look_up)

    def _look_up(self, call: ToolCall) -> ToolResult | None:
        return self._responses.get(make_call_key([call.name], call.arguments))

    def close(self) -> None:
        """Forget the responses."""
        self._responses.close()


def list_answered_calls(trajectory: Trajectory) -> Iterator[tuple[ToolCall, ToolResult]]:
    """The calls of a trajectory that a tool answered, with their results."""
    for step in trajectory.steps:
        if step.call and step.status in (StepStatus.OK, StepStatus.TOOL_ERROR):
            yield step.call, ToolResult(step.status, step.observation)


def fail_unrecorded(_: ToolCall) -> ToolResult:
    """The answer to a call that was never recorded."""
    return ToolResult(StepStatus.TOOL_ERROR, write_protocol_error(NEVER_RECORDED))


def write_protocol_error(message: str) -> str:
    """The text of a failure in the `/virtual` protocol, in which recorded responses are kept."""
    return json.dumps({"error": message, "response": ""}, ensure_ascii=False)


class ReplaySession(Session):
    """One episode of one query. It has no state: the same call always gets the same response.

    `lookup` returns the recorded response of a call, or None. `fallback` answers a call that is not recorded, if its
    tool is offered and its arguments fit the schema.
    """

    def __init__(
        self,
        query: Query,
        lookup: Callable[[ToolCall], ToolResult | None],
        fallback: Callable[[ToolCall], ToolResult] = fail_unrecorded,
    ) -> None:
        self._look_up, self._fallback = lookup, fallback
        self._parameters: dict[str, Mapping[str, Any]] = {
            t["function"]["name"]: t["function"]["parameters"] for t in query.tools
        }

    def call(self, call: ToolCall) -> ToolResult:
        """The recorded response, or an error: no such tool, arguments that break its schema, or not recorded.

        A recorded response counts even where the arguments break the schema, since the real tool accepted them.
        """
        if call.name not in self._parameters:
            return ToolResult(StepStatus.UNKNOWN_TOOL, write_protocol_error(f"{UNKNOWN_FUNCTION}: {call.name}"))
        if (response := self._look_up(call)) is not None:
            return response
        if problem := check_arguments(self._parameters[call.name], call.arguments):
            return ToolResult(StepStatus.INVALID_ARGUMENTS, write_protocol_error(f"Invalid arguments: {problem}"))
        return self._fallback(call)
