"""The queries of a file by id, in a temporary database."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any

from steptool.records import Query
from steptool.records.columns import from_row, to_json
from steptool.records.tables import iterate_rows
from steptool.storage.sqlite import open_scratch_database

_PARSED = 256
"""Queries kept as objects."""
_TABLES = """
CREATE TABLE tools (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE TABLE queries (number INTEGER PRIMARY KEY, query_id TEXT NOT NULL UNIQUE, tools INTEGER NOT NULL,
    row TEXT NOT NULL);
"""


class QueryTable(Mapping[str, Query]):
    """The queries of a file by id; memory does not grow with their number.

    A query is parsed when it is asked for. Threads may share the table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._database, self._lock = open_scratch_database(None, _TABLES), Lock()
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
        joined = "SELECT row, text FROM queries JOIN tools ON tools.number = tools WHERE query_id = ?"
        for row, tools in self._select(joined, query_id):
            return from_row({**json.loads(row), "tools": tools}, Query)
        raise KeyError(query_id)

    def _select(self, sql: str, *values: str | bytes) -> Iterator[tuple[Any, ...]]:
        with self._lock:
            return iter(self._database.execute(sql, values).fetchall())
