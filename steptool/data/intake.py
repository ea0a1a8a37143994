"""Reading people's files: what was read, what was kept, what was set aside and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steptool.contracts import Row


class IngestError(ValueError):
    """The input cannot be used; the message names the file and the row or field."""


class UnusableError(ValueError):
    """One record that cannot be used: `reason` is shared by all records with the same fault, `detail` says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Ledger:
    """Counts of what went through, and the records that did not, each with its reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.set_aside: list[Row] = []

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[what] += number

    def refuse(self, kind: str, file: Path, row: int | None, error: UnusableError, record: Any = None) -> None:
        """Set a record (or, with row None, a whole file) of a kind ("queries", "demonstrations") aside."""
        self.count(f"{kind} dropped: {error.reason}")
        self.set_aside.append(
            {
                "kind": kind,
                "file": str(file),
                "row": row,
                "reason": error.reason,
                "detail": error.detail,
                "record": record,
            }
        )

    def first_refusal(self) -> str:
        """The first record set aside, as a sentence for an error; empty if there is none."""
        if not self.set_aside:
            return ""
        first = self.set_aside[0]
        row = "" if first["row"] is None else f", row {first['row']}"
        return f"{first['file']}{row}: {first['reason']}: {first['detail']}"

    def write(self, path: Path) -> Path:
        """Write the records set aside, one JSON object a line."""
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.set_aside]
        path.write_text("".join(lines), encoding="utf-8")
        return path


def files(paths: Sequence[str], field: str, suffix: str) -> Iterator[Path]:
    """The files named, and those with the suffix below the folders named, in a fixed order.

    Raises IngestError for a path that does not exist and for a folder without such a file.
    """
    for name in paths:
        path = Path(name)
        found = sorted(p for p in path.rglob(f"*{suffix}") if p.is_file()) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            what = f"has no {suffix} file below it" if path.is_dir() else "does not exist"
            raise IngestError(f"{field}: '{name}' {what}; name a {suffix} file or a folder that holds some")
        yield from found


def read_json(path: Path) -> Any:
    """The document in a JSON file. Raises UnusableError if it is none."""
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """The text of a file. Raises UnusableError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableError("not UTF-8 text", str(error)) from None


def parse_json(text: str) -> Any:
    """A JSON document whose strings can all be written as UTF-8: half a surrogate pair becomes U+FFFD."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableError("not JSON", str(error)) from None
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return _mended(document)
    return document


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
    path = f"{where}.{name}" if where else name
    if not isinstance(record, dict):
        raise UnusableError("not an object", f"{where or 'the record'}: expected a JSON object, got {shown(record)}")
    if name not in record:
        raise UnusableError(f"missing field '{name}'", f"field '{path}' is missing; there are {sorted(record)}")
    if not isinstance(record[name], kind):
        expected = " or ".join(k.__name__ for k in ((kind,) if isinstance(kind, type) else kind))
        raise UnusableError(
            f"ill-typed field '{name}'", f"field '{path}': expected {expected}, got {shown(record[name])}"
        )
    return record[name]


def text_field(record: Any, name: str, where: str = "") -> str:
    """A field that holds text, and not only white space."""
    text = field(record, name, str, where)
    if not text.strip():
        path = f"{where}.{name}" if where else name
        raise UnusableError(f"empty field '{name}'", f"field '{path}' holds no text")
    return str(text)


def shown(value: Any, limit: int = 80) -> str:
    """A value for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def unique(names: Iterable[str]) -> list[str]:
    """The same names in the same order, each once."""
    return list(dict.fromkeys(names))
