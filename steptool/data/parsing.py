"""What can be used of data from outside: JSON and the fields of its objects, and a log of what was set aside.

Errors name what is wrong. The log counts what was read, what was kept, and what was set aside with its reason.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from steptool.records.tables import write_whole

_IN_MEMORY = 1 << 20
"""Bytes of records set aside that are held in memory; more go to a temporary file."""


def summarise_counts(counts: Mapping[str, int]) -> str:
    """Counts in words: "demonstrations: 3 read, 1 kept, 2 dropped: not JSON"."""
    kinds: dict[str, list[str]] = {}
    for name, number in counts.items():
        event, _, reason = name.partition(": ")
        kind, _, verb = event.rpartition(" ")
        kinds.setdefault(kind, []).append(f"{number} {verb}" + (f": {reason}" if reason else ""))
    return "; ".join(f"{kind}: {', '.join(parts)}" for kind, parts in kinds.items()) or "nothing was read"


class IngestError(ValueError):
    """The input cannot be used; the message names the file and the row or field."""


class UnusableError(ValueError):
    """One record that cannot be used: `reason` is shared by all records with the same fault, `detail` says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Record:
    """One record of a file and its place."""

    file: Path
    row: int | str | None
    """Its line (from 1), its position in a list or table (from 0) or its key; None where the file is the record."""
    value: Any
    """What was read; for a record that cannot be read, as much of its text as can be shown."""
    fault: UnusableError | None = None
    """Why it cannot be read. With no row it concerns the file, from here to its end."""

    @property
    def place(self) -> str:
        """File and row in words."""
        return str(self.file) if self.row is None else f"{self.file}, row {self.row}"


class IngestLog:
    """Counts of what went through, and the records that did not, each with its reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first_refusal = ""
        self._quarantine = SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8")  # noqa: SIM115  closed with the log

    def count(self, name: str, number: int = 1) -> None:
        """Add a number to the count of this name."""
        self.counts[name] += number

    def refuse(self, kind: str, record: Record, error: UnusableError) -> None:
        """Set a record of a kind ("queries", "demonstrations") aside, and count it as read and dropped.

        The kind "files" stands for the rest of a file, which is counted as dropped and not as read.
        """
        if kind != "files":
            self.count(f"{kind} read")
        self.count(f"{kind} dropped: {error.reason}")
        self._first_refusal = self._first_refusal or f"{record.place}: {error}"
        row = {"kind": kind, "file": str(record.file), "row": record.row, "reason": error.reason}
        row |= {"detail": error.detail, "record": record.value}
        try:
            line = json.dumps(row, ensure_ascii=False, default=str)
        except RecursionError:
            line = json.dumps(row | {"record": None}, ensure_ascii=False)
        self._quarantine.write(line + "\n")

    def summary(self) -> str:
        """What was read, kept and dropped of each kind, in one sentence for an error, and the first refusal."""
        text = summarise_counts(self.counts)
        if not self._first_refusal:
            return text
        return f"{text}. First record set aside: {self._first_refusal}. `steptool ingest` writes all of them to a file"

    def write(self, path: Path) -> Path:
        """Write the records set aside, one JSON object per line; the file appears whole or not at all."""
        self._quarantine.seek(0)
        with write_whole(path) as partial, partial.open("w", encoding="utf-8") as target:
            shutil.copyfileobj(self._quarantine, target)
        return path


_MISSING = object()
_LITERAL_LIMIT = 1 << 20
"""Characters of a value in Python's syntax, which takes some hundred times as much memory to read."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be one half of a surrogate pair."""
_CUT_OFF = re.compile(r"was never closed|unterminated")
"""Python's errors for a text that ends too early."""


def parse_json(text: str) -> Any:
    """A JSON document whose strings can all be written as UTF-8: half a surrogate pair becomes U+FFFD."""
    try:
        return replace_half_pairs(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise UnusableError("not JSON", str(error)) from None


class KeyCheck:
    """Reads the objects of a JSON text and notes each key that one of them gives twice."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        """The keys, with their values."""

    def read_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object of these pairs, with the last value of a key: the hook of Python's JSON decoder."""
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
            values = " and ".join(cut_excerpt(inner) for key, inner in pairs if key == twice)
            self.repeated.append(f"'{twice}' with the values {values}")
        return value

    @property
    def fault(self) -> UnusableError | None:
        """The refusal of a text that gives a key twice, since it does not say which value is meant."""
        return UnusableError("a key given twice", "; ".join(self.repeated)) if self.repeated else None


def parse_document(text: str) -> Any:
    """As `parse_json`, for what people and their programs write: no object may give a key twice."""
    keys = KeyCheck()
    try:
        document = replace_half_pairs(json.loads(text, object_pairs_hook=keys.read_object), text)
    except (ValueError, RecursionError) as error:
        raise UnusableError("not JSON", str(error)) from None
    if keys.fault:
        raise keys.fault
    return document


def parse_if_text(value: Any, where: str) -> Any:
    """A value that may be written as its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_document(value)
    except UnusableError as error:
        raise UnusableError(error.reason, f"{where}: {error.detail}") from None


def replace_half_pairs(document: Any, text: str) -> Any:
    """A document as read from its JSON text, with U+FFFD for every half of a surrogate pair."""
    return _replace(document) if _HALF_PAIR.search(text) else document


def _replace(node: Any) -> Any:
    if isinstance(node, str):
        return node.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(node, list):
        return [_replace(child) for child in node]
    if isinstance(node, dict):
        return {_replace(key): _replace(child) for key, child in node.items()}
    return node


def parse_literal(text: str, where: str) -> Any:
    """A value from Python's syntax for one. Nothing is executed: names, calls and operators are refused.

    Raises UnusableError, which says so where the text ends within the value.
    """
    if len(text) > _LITERAL_LIMIT:
        detail = f"'{where}': {len(text)} characters, expected at most {_LITERAL_LIMIT}"
        raise UnusableError("a cell too large", detail)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, SyntaxError) and _CUT_OFF.search(error.msg):
            detail = f"'{where}': the text ends after {len(text)} characters, within {cut_excerpt(text[-40:])}"
            raise UnusableError("a text that was cut off", detail) from None
        detail = f"'{where}': {type(error).__name__}: {error}; got {cut_excerpt(text)}"
        raise UnusableError("not a Python literal", detail) from None


def require(record: Any, name: str, kind: type | tuple[type, ...], where: str = "") -> Any:
    """A field of a JSON object. Raises UnusableError naming the field if it is missing or of another type."""
    value = record.get(name, _MISSING) if isinstance(record, dict) else _MISSING
    if not isinstance(value, kind):
        raise _make_field_error(record, name, kind, where)
    return value


def _make_field_error(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> UnusableError:
    path = f"{where}.{name}" if where else name
    if not isinstance(record, dict):
        return UnusableError(
            "not an object", f"{where or 'the record'}: expected a JSON object, got {cut_excerpt(record)}"
        )
    if name not in record:
        return UnusableError(f"missing field '{name}'", f"field '{path}' is missing; there are {sorted(record)}")
    expected = " or ".join(k.__name__ for k in ((kind,) if isinstance(kind, type) else kind))
    return UnusableError(
        f"ill-typed field '{name}'", f"field '{path}': expected {expected}, got {cut_excerpt(record[name])}"
    )


def require_text(record: Any, name: str, where: str = "") -> str:
    """A field that holds text, and not only white space."""
    text: str = require(record, name, str, where)
    if not text or text.isspace():
        path = f"{where}.{name}" if where else name
        raise UnusableError(f"empty field '{name}'", f"field '{path}' holds no text")
    return text


def get_optional(record: Any, name: str, kind: type, default: Any, where: str = "") -> Any:
    """A field of a JSON object, or the default where the object does not have it."""
    return require(record, name, kind, where) if name in record else default


def convert_to_text(value: Any) -> str:
    """Text as it is, None as the empty text, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def cut_excerpt(value: Any, limit: int = 80) -> str:
    """The beginning of a value as JSON, for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def join_texts(texts: Sequence[str], gap: str = "\n") -> str:
    """Texts one after the other, without empty ones."""
    return gap.join(text for text in texts if text)


def drop_repeats(names: Iterable[str]) -> list[str]:
    """The same names in the same order, each once."""
    return list(dict.fromkeys(names))
