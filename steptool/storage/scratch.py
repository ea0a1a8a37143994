"""A database in a temporary file, for what need not fit into memory."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_CACHE = 1 << 16
"""KiB of the file that are held in memory."""


def scratch_database(folder: Path, tables: str) -> sqlite3.Connection:
    """An empty database in a folder, with tables made by SQL and within one transaction that is never undone."""
    database = sqlite3.connect(folder / "scratch.sqlite", isolation_level=None)
    database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE};")
    database.executescript(tables)
    database.execute("BEGIN")
    return database
