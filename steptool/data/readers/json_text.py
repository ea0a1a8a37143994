"""JSON as a stream of records: a list element by element, lines one by one, another document as one record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from json import JSONDecoder
from pathlib import Path
from typing import IO, Any

from steptool.data.ingest_log import Record, UnusableError
from steptool.data.parsing import parse_json, replace_half_pairs
from steptool.data.readers.compressed import open_bytes, open_text

SHOWN = 2000
"""Characters that are kept of a record that cannot be read."""
_CHUNK = 1 << 20
_WHITE = re.compile(r"[ \t\r\n]*")
_AFTER = {"[": ("]", True, False), ",": ("", True, False), "]": ("", False, True)}
"""After a mark of a list: the marks that may follow, whether an element may, and whether the list has ended."""


def read_json(file: Path, limit: int) -> Iterator[Record]:
    """A list is read element by element, several lines as JSON lines, and another document as one record."""
    with open_bytes(file) as stream:
        start = stream.read(_CHUNK)
        begins = start.removeprefix(b"\xef\xbb\xbf").lstrip()
        document = None if begins.startswith(b"[") or _begins_with_lines(begins) else start + stream.read(limit)
    if document is None:
        yield from _read_list(file, limit) if begins.startswith(b"[") else read_lines(file, limit)
    elif len(document) > limit:
        raise UnusableError("a record too large", f"a document of more than {limit} bytes; write a record a line")
    else:
        yield from _read_members(file, parse_json(document.decode("utf-8-sig")))


def _read_list(file: Path, limit: int) -> Iterator[Record]:
    with open_text(file, "utf-8-sig") as text:
        yield from (Record(file, n, element) for n, element in enumerate(_iterate_elements(text, limit)))


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


def _iterate_elements(stream: IO[str], limit: int) -> Iterator[Any]:
    """Elements of the JSON list that a stream holds, one at a time. Raises UnusableError for other text."""
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
            text, at, element = _read_element(decoder, stream, text, at, limit, number)
            yield element
            marks, element_fits, number = ",]", False, number + 1
        else:
            expected = f"one of {marks!r}" if marks else "nothing more"
            raise UnusableError("not JSON", f"after {number} elements: expected {expected}, got {text[at : at + 80]!r}")


def _read_element(
    decoder: JSONDecoder, stream: IO[str], text: str, at: int, limit: int, number: int
) -> tuple[str, int, Any]:
    """Read the element that begins at a place of the text. Returns the text, the end of the element, and the element.

    An element that ends with the text may go on (as a number does), so one more character is wanted.
    """
    while True:
        try:
            value, end = decoder.raw_decode(text, at)
            if end < len(text):
                return text, end, replace_half_pairs(value, text[at:end])
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
        return Record(file, number, parse_json(line.decode()))
    except UnicodeDecodeError as error:
        fault = UnusableError("not UTF-8 text", str(error))
    except UnusableError as error:
        fault = error
    return Record(file, number, line.decode(errors="replace")[:SHOWN], fault)


def _skip_line(stream: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(_CHUNK)
