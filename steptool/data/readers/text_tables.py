"""Tables of text as a stream of records, one for each row: cells between tabs or commas, under a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from steptool.data.ingest_log import Record, UnusableError
from steptool.data.readers.compressed import open_text
from steptool.data.readers.json_text import SHOWN


def read_text_table(file: Path, limit: int) -> Iterator[Record]:
    """Rows of a table with a header: by tabs, or by commas where the header has no tab."""
    csv.field_size_limit(limit)
    with open_text(file, "utf-8-sig", errors="surrogateescape", newline="") as stream:
        header = stream.readline(limit)
        try:
            header.encode()
        except UnicodeEncodeError as error:
            detail = f"the header: {error}; save the file as UTF-8"
            raise UnusableError("not UTF-8 text", detail) from None
    with open_text(file, "utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.DictReader(_bounded_lines(stream, limit), delimiter="\t" if "\t" in header else ",", strict=True)
        for row in rows:
            yield _record(file, rows.line_num, row)


def _bounded_lines(stream: IO[str], limit: int) -> Iterator[str]:
    """The lines of a stream. Raises UnusableError for one that is longer than the limit."""
    while line := stream.readline(limit + 1):
        if len(line) > limit:
            raise UnusableError("a record too large", f"a line of more than {limit} characters")
        yield line


def _record(file: Path, number: int, row: dict[Any, Any]) -> Record:
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
