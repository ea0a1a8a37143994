"""JSON from outside, and the fields of its objects, with errors that name what is wrong."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from steptool.data.ingest_log import UnusableError

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


def parse_if_text(value: Any, where: str) -> Any:
    """A value that may be written as its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
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
            detail = f"'{where}': the text ends after {len(text)} characters, within {excerpt(text[-40:])}"
            raise UnusableError("a text that was cut off", detail) from None
        detail = f"'{where}': {type(error).__name__}: {error}; got {excerpt(text)}"
        raise UnusableError("not a Python literal", detail) from None


def require(record: Any, name: str, kind: type | tuple[type, ...], where: str = "") -> Any:
    """A field of a JSON object. Raises UnusableError naming the field if it is missing or of another type."""
    value = record.get(name, _MISSING) if isinstance(record, dict) else _MISSING
    if not isinstance(value, kind):
        raise _field_error(record, name, kind, where)
    return value


def _field_error(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> UnusableError:
    path = f"{where}.{name}" if where else name
    if not isinstance(record, dict):
        return UnusableError("not an object", f"{where or 'the record'}: expected a JSON object, got {excerpt(record)}")
    if name not in record:
        return UnusableError(f"missing field '{name}'", f"field '{path}' is missing; there are {sorted(record)}")
    expected = " or ".join(k.__name__ for k in ((kind,) if isinstance(kind, type) else kind))
    return UnusableError(
        f"ill-typed field '{name}'", f"field '{path}': expected {expected}, got {excerpt(record[name])}"
    )


def require_text(record: Any, name: str, where: str = "") -> str:
    """A field that holds text, and not only white space."""
    text: str = require(record, name, str, where)
    if not text or text.isspace():
        path = f"{where}.{name}" if where else name
        raise UnusableError(f"empty field '{name}'", f"field '{path}' holds no text")
    return text


def optional(record: Any, name: str, kind: type, default: Any, where: str = "") -> Any:
    """A field of a JSON object, or the default where the object does not have it."""
    return require(record, name, kind, where) if name in record else default


def as_text(value: Any) -> str:
    """Text as it is, nothing as the empty text, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def excerpt(value: Any, limit: int = 80) -> str:
    """The beginning of a value as JSON, for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def join_texts(texts: Sequence[str], gap: str = "\n") -> str:
    """Texts one after the other, without those that say nothing."""
    return gap.join(text for text in texts if text)


def unique(names: Iterable[str]) -> list[str]:
    """The same names in the same order, each once."""
    return list(dict.fromkeys(names))
