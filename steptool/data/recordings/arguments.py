"""Arguments of recorded calls: JSON as its writers produced it, which is not always JSON as a model has to write it."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from steptool.chat.calls import GIVE_ANSWER, GIVE_UP
from steptool.data.ingest_log import UnusableError
from steptool.data.parsing import replace_half_pairs
from steptool.records import FINISH

_LITERAL_LIMIT = 1 << 16
"""Characters of arguments in Python's syntax, which takes some hundred times as much memory to read."""
_LENIENT = json.JSONDecoder(strict=False)
"""Takes raw newlines and other control characters in strings."""
_NOTHING = ("", "null", "None")
_BAD_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])|\\')
_RETURN_TYPE = re.compile(rf"""["']return_type["']\s*:\s*["']({GIVE_ANSWER}|{GIVE_UP})["']""")
_ANSWER = re.compile(r'"final_answer"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)
_SUSPECT = re.compile(r"NaN|Infinity|[eE]\+?\d{2}|\d{300}")
"""What a text holds wherever its JSON holds a number beyond the range of floats."""


def is_strict_object(text: str) -> bool:
    """Whether a text is an object in JSON as it has to be, so that there is nothing to mend."""
    try:
        return isinstance(json.loads(text), dict) and not _SUSPECT.search(text)
    except (ValueError, RecursionError):
        return False


def read_arguments(name: str, text: str) -> dict[str, Any] | None:
    """The arguments of a call of the tool `name`; None where they are no object.

    Besides JSON these are read: no arguments at all, strings with raw control characters, JSON within JSON, and the
    text of a Python dict. A Finish is also read where it was cut off or has escapes that JSON does not know: its answer
    is what is left of it. Raises UnusableError for numbers that JSON cannot write.
    """
    if text.strip() in _NOTHING:
        return {}
    value = _read_json(text)
    arguments: dict[str, Any] | None = value if isinstance(value, dict) else None
    if arguments is None:
        finish = _read_finish(text) if name == FINISH else None
        arguments = finish if finish and "final_answer" in finish else _read_literal(text) or finish
    if arguments is not None and _SUSPECT.search(text):
        _check_numbers(arguments)
    return arguments


def _read_json(text: str) -> Any:
    """The value of a JSON text, or of the JSON text that it holds as a string."""
    try:
        value = replace_half_pairs(_LENIENT.decode(text), text)
        return replace_half_pairs(_LENIENT.decode(value), value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _read_literal(text: str) -> dict[str, Any] | None:
    if len(text) > _LITERAL_LIMIT or not text.lstrip().startswith("{"):
        return None
    try:
        value = ast.literal_eval(text.strip())
        # What JSON cannot hold (sets, bytes, keys that are no text) is not read.
        text_of_value = json.dumps(value, ensure_ascii=False)
        return value if isinstance(value, dict) and json.loads(text_of_value) == value else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _read_finish(text: str) -> dict[str, Any] | None:
    """A Finish whose return type can be read, with as much of its answer as there is."""
    return_type, answer = _RETURN_TYPE.search(text), _ANSWER.search(text)
    if not return_type:
        return None
    finish: dict[str, Any] = {"return_type": return_type[1]}
    return finish | {"final_answer": _unescape(answer[1])} if answer else finish


def _unescape(body: str) -> str:
    """The string between the quotation marks of a JSON text; a backslash that escapes nothing is left out."""
    body = _BAD_ESCAPE.sub(lambda escape: escape[0] if escape[1] else "", body)
    text: str = replace_half_pairs(json.loads(f'"{body}"', strict=False), body)
    return text


def _check_numbers(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UnusableError("a number that JSON cannot write", f"expected finite numbers, got {value}")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(child)
