"""What was read from users' files, what was kept, and what was set aside with its reason."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from steptool.records.columns import Row

_IN_MEMORY = 1 << 20
"""Bytes of records set aside that are held in memory; more go to a temporary file."""


def summarise(counts: Mapping[str, int]) -> str:
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
        self._first_refusal = ""
        self._quarantine = SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8")  # noqa: SIM115  closed with the log

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] += number

    def refuse(self, kind: str, record: Record, error: UnusableError) -> None:
        """Set a record of a kind ("queries", "demonstrations") aside, and count it as read and dropped.

        The kind "files" stands for the rest of a file, which is counted as dropped alone.
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

    @property
    def set_aside(self) -> list[Row]:
        """The records set aside so far."""
        self._quarantine.seek(0)
        rows = [json.loads(line) for line in self._quarantine]
        self._quarantine.seek(0, 2)
        return rows

    def summary(self) -> str:
        """What was read, kept and dropped of each kind, in one sentence for an error, and the first refusal."""
        text = summarise(self.counts)
        return f"{text}. First record set aside: {self._first_refusal}" if self._first_refusal else text

    def write(self, path: Path) -> Path:
        """Write the records set aside, one JSON object a line."""
        self._quarantine.seek(0)
        with path.open("w", encoding="utf-8") as target:
            shutil.copyfileobj(self._quarantine, target)
        return path
