"""Parquet and Arrow files as a stream of records, one for each row.

Files come from outside: an Arrow file is checked before its values are touched, a Parquet file is read in parts whose
size is known before, and of a cell that cannot be read only the row is lost.

An Arrow stream consists of messages: a length, metadata as a flatbuffer, and a body. The metadata lists where the
buffers lie in the body. A compressed buffer begins with its size when it is decompressed, which Arrow allocates at
once; here that size is read first. (Apache Arrow, Columnar Format, Serialization and Interprocess Communication.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

from steptool.data.parsing import Record, UnusableError, convert_to_text, parse_json

_CONTINUES = -1
"""Stands before the length of the metadata, except in streams of old versions."""
_LARGEST_METADATA = 1 << 26
_DICTIONARY, _BATCH = 2, 3
"""Kinds of messages that have a body."""
_HEADER_KIND, _HEADER, _BODY_LENGTH = 1, 2, 3
"""Fields of a message."""
_BUFFERS, _COMPRESSION = 2, 3
"""Fields of a batch."""
_DICTIONARY_BATCH = 1
"""Field of a dictionary: the batch that holds its values."""


def measure_unfolded_sizes(file: Path) -> Iterator[int]:
    """Bytes that the compressed buffers of each part take when they are decompressed.

    Raises UnusableError for what is no Arrow stream.
    """
    with file.open("rb") as stream:
        try:
            while metadata := _read_metadata(stream):
                body = stream.tell()
                yield sum(_read_size(stream, body + offset) for offset in _find_compressed_buffers(metadata))
                length = metadata.number("<q", metadata.field(metadata.root, _BODY_LENGTH))
                if length < 0:
                    raise ValueError(f"a body of {length} bytes")
                stream.seek(body + length)
        except (struct.error, OSError, OverflowError, ValueError) as error:
            raise UnusableError("unreadable file", f"not an Arrow stream: {error}") from error


class _Flatbuffer:
    """Fields of tables by their number. Raises struct.error beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        (self.root,) = struct.unpack_from("<I", data)

    def number(self, form: str, at: int) -> int:
        """The number at a place; 0 at place 0, which stands for a field that the table lacks."""
        if at < 0:
            raise ValueError("a place before the beginning")
        return int(struct.unpack_from(form, self._data, at)[0]) if at else 0

    def field(self, table: int, number: int) -> int:
        """The place of a field; 0 if the table does not have it."""
        names = table - self.number("<i", table)
        entry = 4 + 2 * number
        offset = self.number("<H", names + entry) if entry < self.number("<H", names) else 0
        return table + offset if offset else 0

    def follow(self, at: int) -> int:
        """The place that a field points to."""
        return at + self.number("<I", at)


def _read_metadata(stream: IO[bytes]) -> _Flatbuffer | None:
    """The metadata of the next message; None at the end of the stream."""
    size = _read_number(stream, "<i")
    if size == _CONTINUES:
        size = _read_number(stream, "<i")
    if not size:
        return None
    if not 0 < size <= _LARGEST_METADATA:
        raise ValueError(f"metadata of {size} bytes")
    return _Flatbuffer(stream.read(size))


def _find_compressed_buffers(message: _Flatbuffer) -> list[int]:
    """Where the compressed buffers of a message begin in its body."""
    kind = message.field(message.root, _HEADER_KIND)
    batch = message.field(message.root, _HEADER)
    if not kind or not batch or message.number("<B", kind) not in (_DICTIONARY, _BATCH):
        return []
    batch = message.follow(batch)
    if message.number("<B", kind) == _DICTIONARY:
        batch = message.follow(message.field(batch, _DICTIONARY_BATCH))
    buffers = message.field(batch, _BUFFERS)
    if not buffers or not message.field(batch, _COMPRESSION):
        return []
    first = message.follow(buffers)
    places = (first + 4 + 16 * number for number in range(message.number("<I", first)))
    return [message.number("<q", at) for at in places if message.number("<q", at + 8)]


def _read_size(stream: IO[bytes], at: int) -> int:
    """The size that a compressed buffer has when it is decompressed; 0 if it is not compressed."""
    stream.seek(at)
    return max(0, _read_number(stream, "<q"))


def _read_number(stream: IO[bytes], form: str) -> int:
    data = stream.read(struct.calcsize(form))
    return struct.unpack(form, data)[0] if data else 0


_CHUNK = 1 << 20
_ROWS = 256
"""Rows of a table that are held at once, at most."""
_FAULTS = (ValueError, OverflowError, OSError, NotImplementedError, MemoryError, SystemError)
"""What pyarrow raises for values and parts of files that cannot be read."""


def read_parquet(file: Path, limit: int) -> Iterator[Record]:
    """The rows of a Parquet file. Where a row group cannot be read, its further rows are lost."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, buffer_size=_CHUNK) as table:
        first = 0
        for group in range(table.metadata.num_row_groups):
            layout = table.metadata.row_group(group)
            number, end = count(first), first + layout.num_rows
            try:
                for batch in table.iter_batches(_choose_rows_at_once(layout, limit), row_groups=[group]):
                    yield from _read_rows(file, batch, number)
            except UnusableError as fault:
                yield Record(
                    file, None, None, UnusableError(fault.reason, f"rows {first} to {end - 1}: {fault.detail}")
                )
            except _FAULTS as error:
                detail = f"rows {next(number)} to {end - 1}: {type(error).__name__}: {error}"
                yield Record(file, None, None, UnusableError("unreadable file", detail))
            first = end


def _choose_rows_at_once(layout: Any, limit: int) -> int:
    """As many rows of a row group as take twice the limit of a record, once they are decompressed.

    A dictionary stores a value once however many rows hold it, so that a row may be much larger than its share of the
    file. Raises UnusableError if one row may be larger than sixteen times the limit.
    """
    rows, row_bytes = max(1, layout.num_rows), 1.0
    for number in range(layout.num_columns):
        column = layout.column(number)
        share = column.total_uncompressed_size / rows
        row_bytes += max(share, _estimate_dictionary_bytes(column) * column.num_values / rows)
    if row_bytes > 16 * limit:
        raise UnusableError("a record too large", f"a row may take {row_bytes:.0f} bytes, expected at most {limit}")
    return int(max(1, min(_ROWS, 2 * limit // row_bytes)))


def _estimate_dictionary_bytes(column: Any) -> float:
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

    for size in measure_unfolded_sizes(file):
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
        column.view(_replace_text_by_bytes(column.type)).validate(full=True)


def _replace_text_by_bytes(kind: Any) -> Any:
    """A type with bytes in place of text."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _replace_text_by_bytes(kind.storage_type)
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _replace_text_by_bytes(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_replace_text_by_bytes(kind.key_type), _replace_text_by_bytes(kind.item_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_replace_text_by_bytes(kind.value_type))
    return pa.list_(_replace_text_by_bytes(kind.value_type)) if pa.types.is_list(kind) else kind


def _read_rows(file: Path, batch: Any, number: Iterator[int]) -> Iterator[Record]:
    """A record for each row of a batch, numbered on; one whose values cannot be read has a fault."""
    readers = {name: _make_converter(batch.schema.field(name).type) for name in batch.schema.names}
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


def _make_converter(kind: Any) -> Callable[[Any], Any]:
    """From what pyarrow gives for a type to plain values: JSON is read, maps and structs are objects.

    A struct has only the fields that are set, since Arrow gives all structs of a column the fields of each.
    """
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return parse_json
    if pa.types.is_struct(kind):
        inner = {field.name: _make_converter(field.type) for field in kind}
        return lambda value: {name: inner[name](child) for name, child in value.items() if child is not None}
    if pa.types.is_map(kind):
        item = _make_converter(kind.item_type)
        return lambda pairs: {convert_to_text(key): None if child is None else item(child) for key, child in pairs}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        each = _make_converter(kind.value_type)
        return lambda value: [None if child is None else each(child) for child in value]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return lambda value: value.decode()
    return _return_unchanged


def _return_unchanged(value: Any) -> Any:
    return value
