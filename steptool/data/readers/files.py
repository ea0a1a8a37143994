"""The files that a configuration names, and their records with their places."""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from steptool.data.ingest_log import IngestError, IngestLog, Record, UnusableError
from steptool.data.readers.arrow import read_arrow, read_parquet
from steptool.data.readers.text import content_suffix, is_packed, read_json, read_lines, read_text_table

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

    Where all kinds of data are looked for, archives are among them, so that they are counted: they are not read.

    Raises IngestError for a path that does not exist and for a folder without such a file.
    """
    for name in paths:
        path, kinds = Path(name), ", ".join(suffixes)
        files = _files_below(path, suffixes) if path.is_dir() else iter([path] * path.is_file())
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


def _files_below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders.sort()
        if _STATE in names and "dataset_info.json" in names:
            names = _files_of_dataset(Path(here, _STATE))
        for name in sorted(names):
            file = Path(here, name)
            is_data = content_suffix(file) in suffixes and name not in _ABOUT_DATASETS
            if (is_data or (is_packed(file) and suffixes == SUFFIXES)) and file.is_file():
                yield file


def _files_of_dataset(state: Path) -> list[str]:
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
            parsed = parse(record)
        except UnusableError as error:
            log.refuse(kind, record, error)
        except RecursionError as error:
            log.refuse(kind, record, UnusableError("nested too deeply", str(error)))
        else:
            yield parsed


def read_file(file: Path, limit: int = RECORD_LIMIT) -> Iterator[Record]:
    """The records of a file, read by its suffix (as JSON or JSON lines where it says nothing).

    What cannot be read is a record with a fault, and reading goes on with the next where there is one. No record takes
    more than `limit` bytes; nothing else is held in memory but a part of a table.
    """
    reader = _READERS.get(content_suffix(file), read_json)
    if is_packed(file):
        yield Record(file, None, None, UnusableError("an archive", "files in archives are not read: unpack it"))
        return
    try:
        yield from reader(file, limit)
    except UnusableError as fault:
        yield Record(file, None, None, fault)
    except UnicodeDecodeError as error:
        yield Record(file, None, None, UnusableError("not UTF-8 text", str(error)))
    except _UNREADABLE as error:
        yield Record(file, None, None, UnusableError("unreadable file", f"{type(error).__name__}: {error}"))
