"""How large the compressed parts of an Arrow stream become, read before pyarrow decompresses any of them.

Each part is a message: a length, metadata as a flatbuffer, and a body. The metadata lists where the buffers lie in the
body; a compressed one begins with its size when it is decompressed, which Arrow allocates at once. (Apache Arrow,
Columnar Format, Serialization and Interprocess Communication.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from steptool.data.ingest_log import UnusableError

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


def unfolded_sizes(file: Path) -> Iterator[int]:
    """Bytes that the compressed buffers of each part take when they are decompressed.

    Raises UnusableError for what is no Arrow stream.
    """
    with file.open("rb") as stream:
        try:
            while metadata := _read_metadata(stream):
                body = stream.tell()
                yield sum(_read_size(stream, body + offset) for offset in _compressed_buffers(metadata))
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
        """The number at a place; 0 at place 0, where a field is that is not there."""
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


def _compressed_buffers(message: _Flatbuffer) -> list[int]:
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
    """The size that a compressed buffer has when it is decompressed; 0 if it is not compressed after all."""
    stream.seek(at)
    return max(0, _read_number(stream, "<q"))


def _read_number(stream: IO[bytes], form: str) -> int:
    data = stream.read(struct.calcsize(form))
    return struct.unpack(form, data)[0] if data else 0
