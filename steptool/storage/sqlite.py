"""SQLite files: those that many processes share, and temporary ones for what need not fit into memory.

They keep replies by request, and the queries of a file by id.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from steptool.records import Query
from steptool.records.columns import from_row, to_json
from steptool.records.tables import iterate_rows

_WAIT = 60.0
"""Seconds to wait for another process that writes."""
_SCRATCH_CACHE = 1 << 16
"""KiB of the file that are held in memory."""


def open_database(path: str | Path, table: str) -> sqlite3.Connection:
    """The file with this table, both made if they are missing; without a path, memory.

    It has a write-ahead log: a transaction is there whole or not at all, even where a process is killed, and readers
    do not wait for writers. The file belongs on a disk of this machine, since its processes share memory through a file
    beside it. Threads share a connection under a lock of their own. Raises sqlite3.Error for a file of another kind.
    """
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path or ":memory:", timeout=_WAIT, isolation_level="IMMEDIATE", check_same_thread=False)
    try:
        _use_log(database)
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(table)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _use_log(database: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite does not wait here while another process does it, so this tries again."""
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def open_scratch_database(folder: Path | None, tables: str) -> sqlite3.Connection:
    """An empty database in a folder, with tables made by SQL and within one transaction that is never undone.

    Without a folder it is in memory until it outgrows the cache, and then in a file without a name, which ends with the
    connection, in the folder of TMPDIR or in /var/tmp. Threads share the connection under a lock of their own.
    """
    place = folder / "scratch.sqlite" if folder else ""
    database = sqlite3.connect(place, isolation_level=None, check_same_thread=False)
    database.executescript(
        f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_SCRATCH_CACHE};"
    )
    database.executescript(tables)
    database.execute("BEGIN")
    return database


_REPLIES_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    request TEXT PRIMARY KEY,
    reply TEXT NOT NULL  -- JSON
) WITHOUT ROWID"""


def make_request_key(request: Mapping[str, Any], vote: int) -> str:
    """Key of a request: SHA-256, in hex, of its fields and the number of the vote as canonical JSON (keys sorted)."""
    text = json.dumps([dict(request), vote], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Replies:
    """A file of replies; the first one of a request stays. No text of a request is in it, only its key."""

    def __init__(self, path: str | Path = "") -> None:
        """Open the file, made if it is missing; without a path, memory. Raises sqlite3.Error if it is another file."""
        self._database = open_database(path, _REPLIES_TABLE)
        self._lock = Lock()

    def get(self, request: str) -> dict[str, Any] | None:
        """The reply to the request with this key; None if no reply is kept."""
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


_PARSED = 256
"""Queries kept as objects."""
_QUERY_TABLES = """
CREATE TABLE tools (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE TABLE queries (number INTEGER PRIMARY KEY, query_id TEXT NOT NULL UNIQUE, tools INTEGER NOT NULL,
    row TEXT NOT NULL);
"""


class QueryTable(Mapping[str, Query]):
    """The queries of a file by id; memory does not grow with their number.

    A query is parsed when it is asked for. Threads may share the table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._database, self._lock = open_scratch_database(None, _QUERY_TABLES), Lock()
        keep = lru_cache(_PARSED)(self._keep_tools)
        for row in iterate_rows(path, Query):
            values = (row["query_id"], keep(row.pop("tools")), to_json(row))
            self._database.execute("INSERT OR REPLACE INTO queries (query_id, tools, row) VALUES (?, ?, ?)", values)
        self._parsed = lru_cache(_PARSED)(self._parse)

    def __getitem__(self, query_id: str) -> Query:
        return self._parsed(query_id)

    def __iter__(self) -> Iterator[str]:
        return (query_id for (query_id,) in self._select("SELECT query_id FROM queries ORDER BY number"))

    def __len__(self) -> int:
        (number,) = next(self._select("SELECT count(*) FROM queries"))
        return int(number)

    def _keep_tools(self, tools: str) -> int:
        """The number of a list of tools. Many queries have the same, and each is kept once."""
        digest = hashlib.sha256(tools.encode()).digest()
        self._database.execute("INSERT OR IGNORE INTO tools (digest, text) VALUES (?, ?)", (digest, tools))
        (number,) = next(self._select("SELECT number FROM tools WHERE digest = ?", digest))
        return int(number)

    def _parse(self, query_id: str) -> Query:
        statement = "SELECT row, text FROM queries JOIN tools ON tools.number = tools WHERE query_id = ?"
        for row, tools in self._select(statement, query_id):
            return from_row({**json.loads(row), "tools": tools}, Query)
        raise KeyError(query_id)

    def _select(self, sql: str, *values: str | bytes) -> Iterator[tuple[Any, ...]]:
        with self._lock:
            return iter(self._database.execute(sql, values).fetchall())
