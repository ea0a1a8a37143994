"""SQLite files: those that many processes share, and a temporary one for what need not fit into memory."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

_WAIT = 60.0
"""Seconds to wait for another process that writes."""
_SCRATCH_CACHE = 1 << 16
"""KiB of the file that are held in memory."""


def open_database(path: str | Path, table: str) -> sqlite3.Connection:
    """The file with this table, both made if they are missing; without a path, memory.

    With a write-ahead log: what is committed is there whole or not at all, whatever process is killed when, and nobody
    who reads waits for one who writes. The file belongs on a disk of this machine: those who use it share memory
    through a file beside it. Threads share a connection under a lock of their own. Raises sqlite3.Error for a file of
    another kind.
    """
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path or ":memory:", timeout=_WAIT, isolation_level="IMMEDIATE", check_same_thread=False)
    _use_log(database)
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute(table)
    return database


def _use_log(database: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. Unlike everything else, this does not wait when another process does the same."""
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def open_scratch_database(folder: Path, tables: str) -> sqlite3.Connection:
    """An empty database in a folder, with tables made by SQL and within one transaction that is never undone."""
    database = sqlite3.connect(folder / "scratch.sqlite", isolation_level=None)
    database.executescript(
        f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_SCRATCH_CACHE};"
    )
    database.executescript(tables)
    database.execute("BEGIN")
    return database
