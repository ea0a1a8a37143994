"""Replies of chat models, kept by request: what was answered once is not asked again."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steptool.storage.sqlite import open_database

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    request TEXT PRIMARY KEY,
    reply TEXT NOT NULL  -- JSON
) WITHOUT ROWID"""


def request_key(request: Mapping[str, Any], vote: int) -> str:
    """Key of a request: SHA-256, in hex, of its fields and the number of the vote as canonical JSON (keys sorted)."""
    text = json.dumps([dict(request), vote], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Replies:
    """A file of replies; the first one of a request stays. No text of a request is in it, only its key."""

    def __init__(self, path: str | Path = "") -> None:
        """Open the file, made if it is missing; without a path, memory. Raises sqlite3.Error if it is another file."""
        self._database = open_database(path, _TABLE)
        self._lock = threading.Lock()

    def get(self, request: str) -> dict[str, Any] | None:
        """The reply to the request with this key; None if there is none."""
        with self._lock:
            rows = self._database.execute("SELECT reply FROM replies WHERE request = ?", (request,)).fetchall()
        return next((json.loads(reply) for (reply,) in rows), None)

    def add(self, request: str, reply: Mapping[str, Any]) -> None:
        """Keep a reply. It is on the disk when this returns."""
        with self._lock, self._database:
            self._database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (request, json.dumps(dict(reply))))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
