"""Reading people's files: what was read, what was kept, what was set aside and why."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from steptool.contracts.columns import Row

_IN_MEMORY = 1 << 20
"""Bytes of records set aside that are held in memory; more go to a temporary file."""
_MISSING = object()
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be one half of a surrogate pair."""


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
    """What was read; of a record that cannot be read as much of its text as can be shown."""
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
        self._first = ""
        self._aside = SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8")  # noqa: SIM115  it lives as long as we

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[what] += number

    def refuse(self, kind: str, record: Record, error: UnusableError) -> None:
        """Set a record of a kind ("queries", "demonstrations"), or the rest of a file ("files"), aside."""
        self.count(f"{kind} dropped: {error.reason}")
        self._first = self._first or f"{record.place}: {error}"
        row = {"kind": kind, "file": str(record.file), "row": record.row, "reason": error.reason}
        row |= {"detail": error.detail, "record": record.value}
        try:
            line = json.dumps(row, ensure_ascii=False, default=str)
        except RecursionError:
            line = json.dumps(row | {"record": None}, ensure_ascii=False)
        self._aside.write(line + "\n")

    @property
    def set_aside(self) -> list[Row]:
        """The records set aside so far."""
        self._aside.seek(0)
        rows = [json.loads(line) for line in self._aside]
        self._aside.seek(0, 2)
        return rows

    @property
    def first_refusal(self) -> str:
        """The first record set aside, as a sentence for an error; empty if there is none."""
        return self._first

    def write(self, path: Path) -> Path:
        """Write the records set aside, one JSON object a line."""
        self._aside.seek(0)
        with path.open("w", encoding="utf-8") as target:
            shutil.copyfileobj(self._aside, target)
        return path


def parse_json(text: str) -> Any:
    """A JSON document whose strings can all be written as UTF-8: half a surrogate pair becomes U+FFFD."""
    try:
        return mended(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise UnusableError("not JSON", str(error)) from None


def mended(document: Any, text: str) -> Any:
    """A document as read from its JSON text, with U+FFFD for every half of a surrogate pair."""
    return _mended(document) if _HALF_PAIR.search(text) else document


def _mended(node: Any) -> Any:
    if isinstance(node, str):
        return node.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(node, list):
        return [_mended(child) for child in node]
    if isinstance(node, dict):
        return {_mended(key): _mended(child) for key, child in node.items()}
    return node


def field(record: Any, name: str, kind: type | tuple[type, ...], where: str = "") -> Any:
    """A field of a JSON object. Raises UnusableError naming the field if it is missing or of another type."""
    value = record.get(name, _MISSING) if isinstance(record, dict) else _MISSING
    if not isinstance(value, kind):
        raise _field_error(record, name, kind, where)
    return value


def _field_error(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> UnusableError:
    path = f"{where}.{name}" if where else name
    if not isinstance(record, dict):
        return UnusableError("not an object", f"{where or 'the record'}: expected a JSON object, got {shown(record)}")
    if name not in record:
        return UnusableError(f"missing field '{name}'", f"field '{path}' is missing; there are {sorted(record)}")
    expected = " or ".join(k.__name__ for k in ((kind,) if isinstance(kind, type) else kind))
    return UnusableError(f"ill-typed field '{name}'", f"field '{path}': expected {expected}, got {shown(record[name])}")


def text_field(record: Any, name: str, where: str = "") -> str:
    """A field that holds text, and not only white space."""
    text: str = field(record, name, str, where)
    if not text or text.isspace():
        path = f"{where}.{name}" if where else name
        raise UnusableError(f"empty field '{name}'", f"field '{path}' holds no text")
    return text


def shown(value: Any, limit: int = 80) -> str:
    """A value for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def unique(names: Iterable[str]) -> list[str]:
    """The same names in the same order, each once."""
    return list(dict.fromkeys(names))
