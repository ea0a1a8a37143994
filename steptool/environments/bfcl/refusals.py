"""Calls that the benchmark's tools would take and not return from: huge numbers, folders copied into each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

MAX_DIGITS = 1000
"""Digits of precision."""
MAX_BITS = 1 << 16
"""Bits of a power of whole numbers."""
MAX_ENTRIES = 10_000
"""Files and folders, each counted wherever it is seen, in a file system that takes another copy."""
_DIGITS = {"logarithm": "precision", "square_root": "precision", "round_number": "decimal_places"}


def refusal(tool: Any, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why a call of the tool's function, with arguments that fit its schema, is not made; None for nearly all."""
    if name in _DIGITS and abs(arguments.get(_DIGITS[name], 0)) > MAX_DIGITS:
        return f"{_DIGITS[name]} must be between -{MAX_DIGITS} and {MAX_DIGITS}"
    if name == "power" and _bits(arguments["base"], arguments["exponent"]) > MAX_BITS:
        return "the result is too large"
    if name == "cp" and sum(1 for _ in islice(_entries(tool.root), MAX_ENTRIES)) == MAX_ENTRIES:
        return "the file system is full"
    return None


def _bits(base: float, exponent: float) -> int:
    """Bits of base ** exponent as a whole number; 0 where it is computed as a float, which is bounded by itself."""
    return base.bit_length() * exponent if isinstance(base, int) and isinstance(exponent, int) else 0


def _entries(folder: Any) -> Iterator[Any]:
    """All below a folder; without end where a folder has been copied into itself."""
    waiting = list(folder.contents.values())
    while waiting:
        entry = waiting.pop()
        yield entry
        waiting += getattr(entry, "contents", {}).values()
