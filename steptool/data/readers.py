"""Files of any kind as a stream of records with their places: JSON, JSON lines, tables, Parquet and saved datasets."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count
from json import JSONDecoder
from pathlib import Path
from typing import IO, Any, TypeVar

from steptool.data.intake import IngestError, IngestLog, Record, UnusableError, mended, parse_json

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
RECORD_LIMIT = 1 << 26
"""Bytes of one record: of a line, of an element of a list, of a JSON document that is no list."""
_CHUNK = 1 << 20
_SHOWN = 2000
"""Characters that are kept of a record that cannot be read."""
_ROWS = 256
"""Rows of a table that are held at once."""
_STATE = "state.json"
"""Names the data files of a dataset saved by Hugging Face datasets; others in its folder are its caches."""
_ABOUT_DATASETS = (_STATE, "dataset_info.json", "dataset_dict.json")
_WHITE = re.compile(r"[ \t\r\n]*")
_AFTER = {"[": ("]", True, False), ",": ("", True, False), "]": ("", False, True)}
"""After a mark of a list: the marks that may follow, whether an element may, and whether the list has ended."""
T = TypeVar("T")


def files(paths: Sequence[str], field: str, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files named, and those with one of the suffixes below the folders named, in a fixed order.

    Raises IngestError for a path that does not exist and for a folder without such a file.
    """
    for name in paths:
        path, kinds = Path(name), ", ".join(suffixes)
        found = _below(path, suffixes) if path.is_dir() else iter([path] * path.is_file())
        first = next(found, None)
        if first is None:
            what = f"has no {kinds} file below it" if path.is_dir() else "does not exist"
            raise IngestError(f"{field}: '{name}' {what}; name a file ({kinds}) or a folder that holds some")
        yield from map(_named, chain([first], found))


def _named(file: Path) -> Path:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise IngestError(f"{file!r}: the name is not UTF-8, and ids are made of names; rename it") from None
    return file


def _below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders.sort()
        if _STATE in names and "dataset_info.json" in names:
            names = _saved(Path(here, _STATE))
        for name in sorted(names):
            file = Path(here, name)
            if file.suffix.lower() in suffixes and name not in _ABOUT_DATASETS and file.is_file():
                yield file


def _saved(state: Path) -> list[str]:
    try:
        return [Path(entry["filename"]).name for entry in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise IngestError(f"{state}: expected the names of a saved dataset's files ({error!r})") from None


def read(found: Iterable[Path], parse: Callable[[Record], T], kind: str, ledger: IngestLog) -> Iterator[T]:
    """What `parse` makes of the records of a kind. Those it refuses, and what cannot be read, are set aside."""
    for record in chain.from_iterable(map(records, found)):
        if record.fault and record.row is None:
            ledger.refuse("files", record, record.fault)
            continue
        ledger.count(f"{kind} read")
        try:
            if record.fault:
                raise record.fault
            parsed = parse(record)
        except UnusableError as error:
            ledger.refuse(kind, record, error)
        except RecursionError as error:
            ledger.refuse(kind, record, UnusableError("nested too deeply", str(error)))
        else:
            yield parsed


def records(file: Path, limit: int = RECORD_LIMIT) -> Iterator[Record]:
    """The records of a file, read by its suffix (as JSON or JSON lines where it says nothing).

    What cannot be read is a record with a fault, and reading goes on with the next where there is one. No record takes
    more than `limit` bytes; nothing else is held in memory but a part of a table.
    """
    reader = _READERS.get(file.suffix.lower(), _json)
    try:
        yield from reader(file, limit)
    except UnusableError as fault:
        yield Record(file, None, None, fault)
    except UnicodeDecodeError as error:
        yield Record(file, None, None, UnusableError("not UTF-8 text", str(error)))
    except (OSError, ValueError, NotImplementedError, csv.Error) as error:  # pyarrow's errors are of the first three
        yield Record(file, None, None, UnusableError("unreadable file", f"{type(error).__name__}: {error}"))


def _json(file: Path, limit: int) -> Iterator[Record]:
    """A list, record by record; else a document, which is one record; else lines."""
    with file.open("rb") as stream:
        start = stream.read(_CHUNK)
        begins = start.removeprefix(b"\xef\xbb\xbf").lstrip()
        document = None if begins.startswith(b"[") or _has_lines(begins) else start + stream.read(limit)
    if document is None:
        yield from _list(file, limit) if begins.startswith(b"[") else _lines(file, limit)
    elif len(document) > limit:
        raise UnusableError("a record too large", f"a document of more than {limit} bytes; write a record a line")
    else:
        yield from _members(file, parse_json(document.decode("utf-8-sig")))


def _list(file: Path, limit: int) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig") as text:
        yield from (Record(file, n, element) for n, element in enumerate(_elements(text, limit)))


def _has_lines(start: bytes) -> bool:
    """Whether the first line is a JSON object on its own, and another one follows."""
    line, end, rest = start.partition(b"\n")
    try:
        return bool(end and rest.strip()) and isinstance(parse_json(line.decode()), dict)
    except (UnusableError, UnicodeDecodeError):
        return False


def _members(file: Path, document: Any) -> Iterator[Record]:
    """The document; of answers converted for ToolEval, an object of records by query id, each of them."""
    table = document.items() if isinstance(document, dict) and "answer_generation" not in document else ()
    if any(isinstance(value, dict) and isinstance(value.get("answer"), dict) for _, value in table):
        yield from (Record(file, key, value) for key, value in table)
    else:
        yield Record(file, None, document)


def _elements(stream: IO[str], limit: int) -> Iterator[Any]:
    """Elements of the JSON list that a stream holds, one at a time. Raises UnusableError where it is none."""
    decoder, text, at, number = JSONDecoder(), "", 0, 0
    marks, element_fits, done = "[", False, False
    while True:
        white = _WHITE.match(text, at)
        at = white.end() if white else at
        if at == len(text):
            text, at = stream.read(_CHUNK), 0
            if not text and done:
                return
            if not text:
                raise UnusableError("not JSON", f"the file ends within its list, after {number} elements")
        elif text[at] in marks:
            marks, element_fits, done = _AFTER[text[at]]
            at += 1
        elif element_fits:
            text, at, element = _element(decoder, stream, text, at, limit, number)
            yield element
            marks, element_fits, number = ",]", False, number + 1
        else:
            expected = f"one of {marks!r}" if marks else "nothing more"
            raise UnusableError("not JSON", f"after {number} elements: expected {expected}, got {text[at : at + 80]!r}")


def _element(
    decoder: JSONDecoder, stream: IO[str], text: str, at: int, limit: int, number: int
) -> tuple[str, int, Any]:
    """The element that begins at a place of the text, read on as far as it goes: the text, its end in it, the element.

    An element that ends with the text may go on (as a number does), so one more character is wanted.
    """
    while True:
        try:
            value, end = decoder.raw_decode(text, at)
            if end < len(text):
                return text, end, mended(value, text[at:end])
            problem = "the file ends within its list"
        except (ValueError, RecursionError) as error:
            problem = str(error)
        text, at = text[at:], 0
        more = stream.read(max(_CHUNK, len(text))) if len(text) <= limit else ""
        if not more:
            reason = "a record too large" if len(text) > limit else "not JSON"
            raise UnusableError(reason, f"after {number} elements: {problem}")
        text += more


def _lines(file: Path, limit: int) -> Iterator[Record]:
    with file.open("rb") as stream:
        for number in count(1):
            line = stream.readline(limit + 1)
            if not line:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > limit:
                _skip_line(stream, line)
                fault = UnusableError("a record too large", f"a line of more than {limit} bytes")
                yield Record(file, number, line[:_SHOWN].decode(errors="replace"), fault)
            elif line.strip():
                yield _line(file, number, line)


def _line(file: Path, number: int, line: bytes) -> Record:
    try:
        return Record(file, number, parse_json(line.decode()))
    except UnicodeDecodeError as error:
        fault = UnusableError("not UTF-8 text", str(error))
    except UnusableError as error:
        fault = error
    return Record(file, number, line.decode(errors="replace")[:_SHOWN], fault)


def _skip_line(stream: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(_CHUNK)


def _table(file: Path, limit: int) -> Iterator[Record]:
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
    return Record(file, number, repr(list(row.values()))[:_SHOWN].encode(errors="replace").decode(), fault)


def _parquet(file: Path, _: int) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, buffer_size=_CHUNK) as table:
        yield from _rows(file, table.iter_batches(_ROWS))


def _arrow(file: Path, _: int) -> Iterator[Record]:
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


_READERS: dict[str, Callable[[Path, int], Iterator[Record]]] = {
    ".jsonl": _lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
