"""Files of text that may be compressed: `.gz` and `.zst` after the suffix that says what they hold."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, cast

COMPRESSED = (".gz", ".zst")
_TEXT = (".json", ".jsonl", ".csv", ".tsv")
"""Suffixes of files that are read where they are compressed as a whole; Parquet and Arrow compress their own parts."""


def content_suffix(file: Path) -> str:
    """The suffix that says what a file holds: `.jsonl` of `logs.jsonl.gz`; empty where it is compressed otherwise."""
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
        return suffix
    inner = Path(file.stem).suffix.lower()
    return inner if inner in _TEXT else ""


def content_stem(file: Path) -> str:
    """The name of a file without the suffixes of its content and its compression: `logs` of `logs.jsonl.gz`."""
    inner = content_suffix(file) if file.suffix.lower() in COMPRESSED else ""
    return Path(file.stem).stem if inner else file.stem


def open_bytes(file: Path) -> IO[bytes]:
    """The content of a file as a stream, decompressed part by part."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    if suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"))
    return file.open("rb")


def open_text(file: Path, encoding: str, errors: str = "strict", newline: str | None = None) -> IO[str]:
    """The same as text."""
    return io.TextIOWrapper(open_bytes(file), encoding=encoding, errors=errors, newline=newline)
