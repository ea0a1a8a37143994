"""Recorded responses by call, in memory or in a file that many processes and threads may use at once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.environments.base import ToolResult
from steptool.records import StepStatus
from steptool.storage.sqlite import open_database

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


def call_key(tool: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """Key of a call: SHA-256, in hex, of the tool's names and the arguments as canonical JSON (keys sorted)."""
    text = json.dumps([*tool, dict(arguments)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Responses:
    """Recorded responses by call. A call that has several gets the most frequent, and of equals the first recorded.

    Where a process is killed, what it was adding is there whole or not at all (`steptool.storage.sqlite`).
    """

    def __init__(self, path: str | Path = "") -> None:
        """Open the file, made if it is missing; without a path, memory. Raises sqlite3.Error if it is another file."""
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
