"""The queries of a file: all of them, those of a split, or each by its id."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache

from steptool.contracts.columns import from_row
from steptool.contracts.tables import iterate_rows, read_table
from steptool.records import Query

_SHARED = ("tools", "environment", "split", "source", "tier")
"""Columns of queries in which many rows hold the same: each value is kept once."""
_PARSED = 256
"""Queries kept as objects."""


def read_queries(path: str | os.PathLike[str], split: str | None = None) -> list[Query]:
    """Queries of a file, of one split if it is given. Raises ValueError if there is none."""
    queries = [from_row(row, Query) for row in iterate_rows(path, Query) if split is None or row["split"] == split]
    if not queries:
        raise ValueError(f"{path}: the split '{split}' is empty; every stage needs at least one query")
    return queries


class QueryTable(Mapping[str, Query]):
    """The queries of a file by id, kept as columns and parsed when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        table = read_table(path, Query)
        for name in _SHARED:
            table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
        self._table = table
        self._places = {query_id: place for place, query_id in enumerate(table["query_id"].to_pylist())}
        self._parsed = lru_cache(_PARSED)(self._parse)

    def __getitem__(self, query_id: str) -> Query:
        return self._parsed(self._places[query_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _parse(self, place: int) -> Query:
        return from_row(self._table.slice(place, 1).to_pylist()[0], Query)
