"""Tables as a stream of records, one for each row: text by commas or tabs, Parquet, and Arrow files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from steptool.data.ingest_log import Record, UnusableError
from steptool.data.parsing import parse_json
from steptool.data.readers.json_text import SHOWN

_CHUNK = 1 << 20
_ROWS = 256
"""Rows of a table that are held at once."""


def read_text_table(file: Path, limit: int) -> Iterator[Record]:
    """Rows of a table of text with a header: by tabs, or by commas where the header has no tab."""
    csv.field_size_limit(limit)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        comma = "\t" not in stream.readline(_CHUNK)
        stream.seek(0)
        rows = csv.DictReader(stream, delimiter="," if comma else "\t", strict=True)
        for row in rows:
            yield _row(file, rows.line_num, row)


def _row(file: Path, number: int, row: dict[Any, Any]) -> Record:
    value = {name: cell for name, cell in row.items() if name is not None}
    if row.get(None) or None in value.values():
        fault = UnusableError("a row of another width", f"expected {len(value)} cells, as the header has")
    else:
        try:
            "".join(value.values()).encode()
        except UnicodeEncodeError as error:
            fault = UnusableError("not UTF-8 text", str(error))
        else:
            return Record(file, number, value)
    return Record(file, number, repr(list(row.values()))[:SHOWN].encode(errors="replace").decode(), fault)


def read_parquet(file: Path, _: int) -> Iterator[Record]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, buffer_size=_CHUNK) as table:
        yield from _rows(file, table.iter_batches(_ROWS))


def read_arrow(file: Path, _: int) -> Iterator[Record]:
    """The rows of an Arrow stream, as `datasets` saves its parts."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        batches = pa.ipc.open_stream(source)
        yield from _rows(file, (b.slice(start, _ROWS) for b in batches for start in range(0, b.num_rows, _ROWS)))


def _rows(file: Path, batches: Iterable[Any]) -> Iterator[Record]:
    number = count()
    for batch in batches:
        kinds = {name: _plain(batch.schema.field(name).type) for name in batch.schema.names}
        for row in batch.to_pylist():
            try:
                value = {name: kinds[name](cell) for name, cell in row.items() if cell is not None}
            except UnusableError as fault:
                yield Record(file, next(number), row, fault)
            else:
                yield Record(file, next(number), value)


def _plain(kind: Any) -> Callable[[Any], Any]:
    """From what pyarrow gives for a type to plain values: JSON is read, and a struct has only the fields that are set.

    (Arrow gives all structs of a column the fields of each.)
    """
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return parse_json
    if pa.types.is_struct(kind):
        inner = {field.name: _plain(field.type) for field in kind}
        return lambda value: {name: inner[name](child) for name, child in value.items() if child is not None}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        each = _plain(kind.value_type)
        return lambda value: [None if child is None else each(child) for child in value]
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value
