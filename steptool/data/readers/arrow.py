"""Parquet and Arrow files as a stream of records, one for each row.

Files come from outside: an Arrow file is checked before its values are touched, a Parquet file is read in parts whose
size is known before, and a cell that cannot be read costs its row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from steptool.data.ingest_log import Record, UnusableError
from steptool.data.parsing import as_text, parse_json
from steptool.data.readers.arrow_messages import unfolded_sizes

_CHUNK = 1 << 20
_ROWS = 256
"""Rows of a table that are held at once, at most."""
_FAULTS = (ValueError, OverflowError, OSError, NotImplementedError, MemoryError, SystemError)
"""What pyarrow raises for values and parts of files that cannot be read."""


def read_parquet(file: Path, limit: int) -> Iterator[Record]:
    """The rows of a Parquet file. A row group that cannot be read (on) costs its own rest."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, buffer_size=_CHUNK) as table:
        first = 0
        for group in range(table.metadata.num_row_groups):
            layout = table.metadata.row_group(group)
            number, end = count(first), first + layout.num_rows
            try:
                for batch in table.iter_batches(_rows_at_once(layout, limit), row_groups=[group]):
                    yield from _read_rows(file, batch, number)
            except UnusableError as fault:
                yield Record(
                    file, None, None, UnusableError(fault.reason, f"rows {first} to {end - 1}: {fault.detail}")
                )
            except _FAULTS as error:
                detail = f"rows {next(number)} to {end - 1}: {type(error).__name__}: {error}"
                yield Record(file, None, None, UnusableError("unreadable file", detail))
            first = end


def _rows_at_once(layout: Any, limit: int) -> int:
    """As many rows of a row group as take twice the limit of a record, once they are decompressed.

    A dictionary stores a value once however many rows hold it, so that a row may be much larger than its share of the
    file. Raises UnusableError if one row may be larger than sixteen times the limit.
    """
    rows, row_bytes = max(1, layout.num_rows), 1.0
    for number in range(layout.num_columns):
        column = layout.column(number)
        share = column.total_uncompressed_size / rows
        row_bytes += max(share, _dictionary_bytes(column) * column.num_values / rows)
    if row_bytes > 16 * limit:
        raise UnusableError("a record too large", f"a row may take {row_bytes:.0f} bytes, expected at most {limit}")
    return int(max(1, min(_ROWS, 2 * limit // row_bytes)))


def _dictionary_bytes(column: Any) -> float:
    """About the size of the dictionary of a column, and so the most that one of its values may take."""
    if not column.has_dictionary_page or column.dictionary_page_offset is None:
        return 0.0
    compressed = max(0, column.data_page_offset - column.dictionary_page_offset)
    ratio = max(1.0, column.total_uncompressed_size / max(1, column.total_compressed_size))
    return float(min(column.total_uncompressed_size, compressed * ratio))


def read_arrow(file: Path, limit: int) -> Iterator[Record]:
    """The rows of an Arrow stream, as `datasets` saves its parts. A part whose layout is not sound is left out whole.

    The file is read and not mapped: what points beyond its end is an error then, and not the end of the process. Arrow
    decompresses a part whole, so a file with a part that would take more than sixteen times the limit is refused.
    """
    import pyarrow as pa

    for size in unfolded_sizes(file):
        if size > 16 * limit:
            detail = (
                f"a part takes {size} bytes when it is decompressed; save it in smaller parts or without compression"
            )
            raise UnusableError("a record too large", detail)
    with pa.OSFile(str(file)) as source:
        first = 0
        for batch in pa.ipc.open_stream(source):
            end = first + batch.num_rows
            try:
                _check_layout(batch)
            except _FAULTS as error:
                detail = f"rows {first} to {end - 1}: {type(error).__name__}: {error}"
                yield Record(file, None, None, UnusableError("unreadable file", detail))
            else:
                number = count(first)
                for start in range(0, batch.num_rows, _ROWS):
                    yield from _read_rows(file, batch.slice(start, _ROWS), number)
            first = end


def _check_layout(batch: Any) -> None:
    """Raise pyarrow's error where offsets, lengths or indices of a batch are not sound; texts may hold any bytes."""
    for column in batch.columns:
        column.view(_with_bytes(column.type)).validate(full=True)


def _with_bytes(kind: Any) -> Any:
    """A type with bytes in place of text."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _with_bytes(kind.storage_type)
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _with_bytes(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with_bytes(kind.key_type), _with_bytes(kind.item_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_with_bytes(kind.value_type))
    return pa.list_(_with_bytes(kind.value_type)) if pa.types.is_list(kind) else kind


def _read_rows(file: Path, batch: Any, number: Iterator[int]) -> Iterator[Record]:
    """A record for each row of a batch, numbered on; one whose values cannot be read has a fault."""
    readers = {name: _plain(batch.schema.field(name).type) for name in batch.schema.names}
    try:
        rows = batch.to_pylist()
    except _FAULTS:
        rows = None
    for position in range(batch.num_rows):
        row = None
        try:
            row = rows[position] if rows is not None else batch.slice(position, 1).to_pylist()[0]
            value = {name: readers[name](cell) for name, cell in row.items() if cell is not None}
        except UnusableError as fault:
            yield Record(file, next(number), row, fault)
        except UnicodeDecodeError as error:
            yield Record(file, next(number), None, UnusableError("not UTF-8 text", str(error)))
        except _FAULTS as error:
            detail = f"{type(error).__name__}: {error}"
            yield Record(file, next(number), None, UnusableError("an unreadable cell", detail))
        else:
            yield Record(file, next(number), value)


def _plain(kind: Any) -> Callable[[Any], Any]:
    """From what pyarrow gives for a type to plain values: JSON is read, maps and structs are objects.

    A struct has only the fields that are set, since Arrow gives all structs of a column the fields of each.
    """
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return parse_json
    if pa.types.is_struct(kind):
        inner = {field.name: _plain(field.type) for field in kind}
        return lambda value: {name: inner[name](child) for name, child in value.items() if child is not None}
    if pa.types.is_map(kind):
        item = _plain(kind.item_type)
        return lambda pairs: {as_text(key): None if child is None else item(child) for key, child in pairs}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        each = _plain(kind.value_type)
        return lambda value: [None if child is None else each(child) for child in value]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return lambda value: value.decode()
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value
