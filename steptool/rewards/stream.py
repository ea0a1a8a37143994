"""Annotation from file to file, as a stream: neither trajectories nor rewards need to fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from steptool.artifacts.contracts import QUERIES, REWARDS, Cost, read_table, write_rows
from steptool.artifacts.rows import iter_trajectories, query_from
from steptool.judge.score import Annotator
from steptool.records import Query
from steptool.rewards.annotators import score_steps

_SHARED = ("tools", "environment", "split", "source", "tier")
"""Columns of queries in which many rows hold the same: each value is kept once."""
_PARSED = 256
"""Queries kept as objects."""


class QueryTable(Mapping[str, Query]):
    """The queries of a file by id, kept as columns and parsed when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        table = read_table(path, QUERIES)
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
        return query_from(self._table.slice(place, 1).to_pylist()[0])


def annotate_file(
    queries: str | os.PathLike[str],
    trajectories: str | os.PathLike[str],
    annotator: Annotator,
    target: str | os.PathLike[str],
    cost: Callable[[], Cost] | None = None,
) -> Path:
    """Write the rewards of a file of trajectories, in its order. Raises as `annotate` does."""
    rows = score_steps(QueryTable(queries), iter_trajectories(trajectories), annotator)
    return write_rows(target, rows, REWARDS, cost)
