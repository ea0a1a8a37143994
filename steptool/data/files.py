"""The files that a configuration names, and their records with their places.

JSON, lines and tables of text are read here, also compressed with gzip, zstd or bzip2: first a file is opened, then one
reader for each form takes it apart. steptool.data.arrow_files reads Parquet and Arrow. The last part finds the files of
a configuration, chooses their readers, and counts what cannot be read.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count
from json import JSONDecoder
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from steptool.data.arrow_files import read_arrow, read_parquet
from steptool.data.parsing import (
    IngestError,
    IngestLog,
    KeyCheck,
    Record,
    UnusableError,
    parse_document,
    parse_json,
    replace_half_pairs,
)

COMPRESSED = (".gz", ".zst", ".bz2")
_PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar", ".xz", ".lz4", ".lzma")
_TEXT = (".json", ".jsonl", ".csv", ".tsv")
"""Suffixes of files that are read where they are compressed as a whole; Parquet and Arrow compress their own parts."""


def find_content_suffix(file: Path) -> str:
    """The suffix that says what a file holds: `.jsonl` of `logs.jsonl.gz`; empty where it is compressed otherwise."""
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
        return suffix
    inner = Path(file.stem).suffix.lower()
    return inner if inner in _TEXT else ""


def is_packed(file: Path) -> bool:
    """Whether a file is an archive, or compressed in a way that is not read."""
    suffix = file.suffix.lower()
    return suffix in _PACKED or (suffix in COMPRESSED and not find_content_suffix(file))


def strip_suffixes(file: Path) -> str:
    """The name of a file without the suffixes of its content and its compression: `logs` of `logs.jsonl.gz`."""
    inner = find_content_suffix(file) if file.suffix.lower() in COMPRESSED else ""
    return Path(file.stem).stem if inner else file.stem


def open_bytes(file: Path) -> IO[bytes]:
    """The content of a file as a stream, decompressed part by part."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.open(file, "rb"))
    if suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"))
    return file.open("rb")


def open_text(file: Path, encoding: str, errors: str = "strict", newline: str | None = None) -> IO[str]:
    """The content of a file as text, decompressed part by part."""
    return io.TextIOWrapper(open_bytes(file), encoding=encoding, errors=errors, newline=newline)


SHOWN = 2000
"""Characters that are kept of a record that cannot be read."""
_CHUNK = 1 << 20
_WHITE = re.compile(r"[ \t\r\n]*")
_AFTER = {"[": ("]", True, False), ",": ("", True, False), "]": ("", False, True)}
"""After a mark of a list: the marks that may follow, whether an element may, and whether the list has ended."""


def read_json_file(file: Path, limit: int) -> Iterator[Record]:
    """A list is read element by element, several lines as JSON lines, and another document as one record."""
    with open_bytes(file) as stream:
        start = stream.read(_CHUNK)
        begins = _strip_beginning(start)
        if begins.startswith(b"{") and not begins.partition(b"\n")[2]:  # the first line goes on, or ends with the part
            start += stream.readline(limit) + stream.read(_CHUNK)
            begins = _strip_beginning(start)
        document = None if begins.startswith(b"[") or _begins_with_lines(begins) else start + stream.read(limit)
    if document is None:
        yield from _read_list(file, limit) if begins.startswith(b"[") else read_lines(file, limit)
    elif len(document) > limit:
        raise UnusableError("a record too large", f"a document of more than {limit} bytes; write one record per line")
    else:
        yield from _read_members(file, parse_document(document.decode("utf-8-sig")))


def _read_list(file: Path, limit: int) -> Iterator[Record]:
    with open_text(file, "utf-8-sig") as text:
        yield from (Record(file, n, *element) for n, element in enumerate(_iterate_elements(text, limit)))


def _strip_beginning(start: bytes) -> bytes:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()


def _begins_with_lines(start: bytes) -> bool:
    """Whether the first line is a JSON object on its own, and another one follows."""
    line, end, rest = start.partition(b"\n")
    try:
        return bool(end and rest.strip()) and isinstance(parse_json(line.decode()), dict)
    except (UnusableError, UnicodeDecodeError):
        return False


def _read_members(file: Path, document: Any) -> Iterator[Record]:
    """The document as one record. Answers converted for ToolEval are an object: each of its values is a record."""
    table = document.items() if isinstance(document, dict) and "answer_generation" not in document else ()
    if any(isinstance(value, dict) and isinstance(value.get("answer"), dict) for _, value in table):
        yield from (Record(file, key, value) for key, value in table)
    else:
        yield Record(file, None, document)


_Element = tuple[Any, UnusableError | None]
"""The value of an element, and why it cannot be used."""


def _iterate_elements(stream: IO[str], limit: int) -> Iterator[_Element]:
    """Elements of the JSON list that a stream holds, one at a time. Raises UnusableError for other text."""
    text, at, number = "", 0, 0
    marks, element_fits, is_last = "[", False, False
    while True:
        white = _WHITE.match(text, at)
        at = white.end() if white else at
        if at == len(text):
            text, at = stream.read(_CHUNK), 0
            if not text and is_last:
                return
            if not text:
                raise UnusableError("not JSON", f"the file ends within its list, after {number} elements")
        elif text[at] in marks:
            marks, element_fits, is_last = _AFTER[text[at]]
            at += 1
        elif element_fits:
            text, at, element = _read_element(stream, text, at, limit, number)
            yield element
            marks, element_fits, number = ",]", False, number + 1
        else:
            expected = f"one of {marks!r}" if marks else "nothing more"
            raise UnusableError("not JSON", f"after {number} elements: expected {expected}, got {text[at : at + 80]!r}")


def _read_element(stream: IO[str], text: str, at: int, limit: int, number: int) -> tuple[str, int, _Element]:
    """Read the element that begins at a place of the text. Returns the text, the end of the element, and the element.

    An element that ends with the text may go on (as a number does), so one more character is read.
    """
    while True:
        keys = KeyCheck()
        try:
            value, end = JSONDecoder(object_pairs_hook=keys.read_object).raw_decode(text, at)
            if end < len(text):
                return text, end, (replace_half_pairs(value, text[at:end]), keys.fault)
            problem = "the file ends within its list"
        except (ValueError, RecursionError) as error:
            problem = str(error)
        text, at = text[at:], 0
        more = stream.read(max(_CHUNK, len(text))) if len(text) <= limit else ""
        if not more:
            reason = "a record too large" if len(text) > limit else "not JSON"
            raise UnusableError(reason, f"after {number} elements: {problem}")
        text += more


def read_lines(file: Path, limit: int) -> Iterator[Record]:
    """One record for each line that is not empty; a bad line is a record with a fault."""
    with open_bytes(file) as stream:
        for number in count(1):
            line = stream.readline(limit + 1)
            if not line:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > limit:
                _skip_line(stream, line)
                fault = UnusableError("a record too large", f"a line of more than {limit} bytes")
                yield Record(file, number, line[:SHOWN].decode(errors="replace"), fault)
            elif line.strip():
                yield _read_line(file, number, line)


def _read_line(file: Path, number: int, line: bytes) -> Record:
    try:
        return Record(file, number, parse_document(line.decode()))
    except UnicodeDecodeError as error:
        fault = UnusableError("not UTF-8 text", f"{error}; save the file as UTF-8")
    except UnusableError as error:
        fault = error
    return Record(file, number, line.decode(errors="replace")[:SHOWN], fault)


def _skip_line(stream: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(_CHUNK)


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
        rows = csv.DictReader(
            _read_bounded_lines(stream, limit), delimiter="\t" if "\t" in header else ",", strict=True
        )
        for row in rows:
            yield _make_record(file, rows.line_num, row)


def _read_bounded_lines(stream: IO[str], limit: int) -> Iterator[str]:
    """The lines of a stream. Raises UnusableError for one that is longer than the limit."""
    while line := stream.readline(limit + 1):
        if len(line) > limit:
            raise UnusableError("a record too large", f"a line of more than {limit} characters")
        yield line


def _make_record(file: Path, number: int, row: dict[Any, Any]) -> Record:
    value = {name: cell for name, cell in row.items() if name is not None}
    if row.get(None) or None in value.values():
        fault = UnusableError("a row of another width", f"expected {len(value)} cells, as the header has")
    else:
        try:
            "".join(value.values()).encode()
        except UnicodeEncodeError as error:
            fault = UnusableError("not UTF-8 text", f"{error}; save the file as UTF-8")
        else:
            return Record(file, number, value)
    return Record(file, number, repr(list(row.values()))[:SHOWN].encode(errors="replace").decode(), fault)


SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
RECORD_LIMIT = 1 << 26
"""Bytes of one record: of a line, of an element of a list, of a JSON document that is no list."""
_STATE = "state.json"
"""Names the data files of a dataset saved by Hugging Face datasets; others in its folder are its caches."""
_ABOUT_DATASETS = (_STATE, "dataset_info.json", "dataset_dict.json")
_READERS: dict[str, Callable[[Path, int], Iterator[Record]]] = {
    ".jsonl": read_lines,
    ".csv": read_text_table,
    ".tsv": read_text_table,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, MemoryError, csv.Error, zlib.error)
"""What readers raise for content that is not what the name of the file says."""
T = TypeVar("T")


def find_files(paths: Sequence[str], field: str, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files named, and those with one of the suffixes below the folders named, in a fixed order.

    With the suffixes of all kinds of data (SUFFIXES), archives below folders are among them. `read_file` reads none,
    but makes each a record with a fault, so that it is counted.

    Raises IngestError for a path that does not exist and for a folder without such a file.
    """
    for name in paths:
        path, kinds = Path(name), ", ".join(suffixes)
        files = _list_files_below(path, suffixes) if path.is_dir() else iter([path] if path.is_file() else [])
        first = next(files, None)
        if first is None:
            problem = f"has no {kinds} file below it" if path.is_dir() else "does not exist"
            raise IngestError(f"{field}: '{name}' {problem}; name a file ({kinds}) or a folder that holds some")
        yield from map(_check_name, chain([first], files))


def _check_name(file: Path) -> Path:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise IngestError(f"{file!r}: the name is not UTF-8, and ids are made of names; rename it") from None
    return file


def _list_files_below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders.sort()
        if _STATE in names and "dataset_info.json" in names:
            names = _list_files_of_dataset(Path(path, _STATE))
        for name in sorted(names):
            file = Path(path, name)
            is_data = find_content_suffix(file) in suffixes and name not in _ABOUT_DATASETS
            if (is_data or (is_packed(file) and suffixes == SUFFIXES)) and file.is_file():
                yield file


def _list_files_of_dataset(state: Path) -> list[str]:
    try:
        return [Path(entry["filename"]).name for entry in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise IngestError(f"{state}: expected the names of a saved dataset's files ({error!r})") from None


def parse_records(files: Iterable[Path], parse: Callable[[Record], T], kind: str, log: IngestLog) -> Iterator[T]:
    """What `parse` makes of the records of a kind. Those that it refuses or that cannot be read go to the log."""
    for record in chain.from_iterable(map(read_file, files)):
        if record.fault:
            log.refuse("files" if record.row is None else kind, record, record.fault)
            continue
        try:
            item = parse(record)
        except UnusableError as error:
            log.refuse(kind, record, error)
        except RecursionError as error:
            log.refuse(kind, record, UnusableError("nested too deeply", str(error)))
        else:
            yield item


def read_file(file: Path, limit: int = RECORD_LIMIT) -> Iterator[Record]:
    """The records of a file, read by its suffix (as JSON or JSON lines where it says nothing).

    What cannot be read is a record with a fault, and reading goes on with the next where there is one. No record takes
    more than `limit` bytes; nothing else is held in memory but a part of a table.
    """
    reader = _READERS.get(find_content_suffix(file), read_json_file)
    if is_packed(file):
        yield Record(file, None, None, UnusableError("an archive", "files in archives are not read: unpack it"))
        return
    try:
        yield from reader(file, limit)
    except UnusableError as fault:
        yield Record(file, None, None, fault)
    except UnicodeDecodeError as error:
        yield Record(file, None, None, UnusableError("not UTF-8 text", f"{error}; save the file as UTF-8"))
    except _UNREADABLE as error:
        yield Record(file, None, None, UnusableError("unreadable file", f"{type(error).__name__}: {error}"))
