"""Reading what tools return: structure where there is any, the values in it, and failures that hide in the text.

Observations are anything at all: JSON, Python's notation, prose, truncated or broken text. Nothing here raises.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MAX_DEPTH = 100
_MAX_LITERAL = 200_000
"""Characters up to which Python's notation is tried."""
_SHORT = 200
"""Characters up to which a whole text can be nothing but an error message."""

_BROKEN_ENVELOPE = re.compile(r"""^\{\s*["']error["']\s*:\s*(["'][^"'\s]|\{)""")
_CUT_ENVELOPE = re.compile(r"""^\{\s*["']error["']\s*:\s*["']\s*["']\s*,\s*["']response["']\s*:\s*["']?""")
"""What precedes the response in an envelope that was cut off, and says of itself that there is no error."""
_OPENING = re.compile(
    r"^[\s*#>-]*((an? )?(\w+ )?(error|exception|traceback|time ?out|timed out|failed|failure|bad request|"
    r"unauthori[sz]ed)|the (input|request|parameter)s?( provided)? (is|are|do|does) (not|invalid))\b",
    re.I,
)
_MESSAGE = re.compile(
    r"\b(not found|(does not|doesn't) exists?|unauthori[sz]ed|forbidden|bad gateway|internal server error|"
    r"service unavailable|too many requests|rate limit|quota|timed out|not subscribed|access denied|"
    r"(invalid|missing) (api|key|token|parameter|argument|input|request)\w*)\b",
    re.I,
)
_ERROR_KEYS = ("error", "errors", "exception", "iserror", "is_error")
_MESSAGE_KEYS = ("message", "msg", "title", "detail")
_CODE_KEYS = ("status", "code", "status_code", "statuscode")
_HTTP_KEYS = ("status_code", "statuscode")
"""Keys that hold nothing but the code of a response, with a message beside it or without."""
_NO_ERROR = {"", "none", "null", "false", "no", "0", "ok", "success", "no error"}

_NO_VALUE = {"", "true", "false", "null", "none", "n/a", "nan", "ok", "success"}
_TOKEN = re.compile(r"[\w@.:/#+-]+")
_IDENTIFYING = re.compile(r"[\d_@]")
_NAME = re.compile(r"(?<=[^.!?:\s]\s)[^\W\d_a-z]\w+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMALS = re.compile(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)")
_PROSE_WORDS = 4
"""Words from which a string counts as prose, not as a value."""


def parse(text: str) -> Any:
    """The observation as a value: JSON or Python's notation where it is one, else the text itself."""
    stripped = text.strip()
    if stripped[:1] not in ("{", "[", '"') and stripped[:20].strip("-+.eE0123456789"):
        return text
    if _depth(stripped) > _MAX_DEPTH:
        return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        return _literal(stripped) if stripped[:1] in ("{", "[") else text


def _literal(text: str) -> Any:
    if len(text) > _MAX_LITERAL:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[({\])}]", text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest


def payload(observation: str) -> Any:
    """What the tool returned: the observation parsed, taken out of a {"error", "response"} envelope if it is in one."""
    value = parse(observation)
    if isinstance(value, dict) and set(value) == {"error", "response"}:
        inner = value["response"]
        return parse(inner) if isinstance(inner, str) else inner
    return value


def failure(observation: str) -> str:
    """Why the text says that the tool failed, although it may have reported success; empty if it does not say so."""
    value = parse(observation)
    if isinstance(value, Mapping):
        return _failure_in(value) or _failure_inside(payload(observation), value)
    return _failure_of_text(value) if isinstance(value, str) else ""


def _failure_inside(inner: Any, outer: Mapping[Any, Any]) -> str:
    if inner is outer:
        return ""
    if isinstance(inner, Mapping):
        return _failure_in(inner)
    return _failure_of_text(inner) if isinstance(inner, str) else ""


def _failure_in(fields: Mapping[Any, Any]) -> str:
    low = {str(key).lower(): value for key, value in fields.items()}
    for key in _ERROR_KEYS:
        if _says_error(low.get(key)):
            return f"{key}: {str(low[key])[:_SHORT]}"
    if low.get("success") is False or low.get("ok") is False:
        return "success is false"
    for key in _CODE_KEYS if any(key in low for key in _MESSAGE_KEYS) else _HTTP_KEYS:
        if _is_error_code(low.get(key)):
            return f"{key}: {low[key]}"
    if low and all(key in _MESSAGE_KEYS for key in low):
        return next(filter(None, (_failure_of_text(str(text)) for text in low.values())), "")
    return ""


def _says_error(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _NO_ERROR
    return not isinstance(value, float) and bool(value)


def _is_error_code(value: Any) -> bool:
    text = str(value).strip().lower()
    return text in {"error", "fail", "failed", "failure"} or re.fullmatch(r"[45]\d\d", text) is not None


def _failure_of_text(text: str) -> str:
    stripped = text.strip()
    if cut := _CUT_ENVELOPE.match(stripped):
        stripped = stripped[cut.end() :].replace('\\"', '"')
    if _BROKEN_ENVELOPE.match(stripped) or _OPENING.match(stripped):
        return stripped[:_SHORT]
    return stripped if len(stripped) <= _SHORT and _MESSAGE.search(stripped) else ""


def normalise(text: str) -> str:
    """Text for comparison: NFKC, lower case, single spaces, 1,200.50 as 1200.5 and 3.0 as 3."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _DECIMALS.sub(lambda m: m[0].rstrip("0").rstrip("."), _THOUSANDS.sub("", folded))


def leaves(value: Any) -> Iterator[Any]:
    """Strings, numbers and other leaves of a nested value, in order."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, Mapping):
            stack.extend(reversed(list(top.values())))
        elif isinstance(top, list | tuple | set):
            stack.extend(reversed(list(top)))
        else:
            yield top


def text_of(value: Any) -> str:
    """All leaves of a value as one normalised text, one leaf per line."""
    return "\n".join(normalise(str(leaf)) for leaf in leaves(value))


def values(value: Any) -> frozenset[str]:
    """The values that a later call or the answer could use, normalised.

    They are the leaves of structures, and the identifiers, numbers and names in prose. Truth values, null, single
    letters and bare words of success are left out: they say nothing of their own.
    """
    parts = map(normalise, (part for leaf in leaves(value) for part in _values_of(leaf)))
    return frozenset(v for v in parts if v not in _NO_VALUE and not (len(v) == 1 and v.isalpha()))


def _values_of(leaf: Any) -> Iterable[str]:
    if leaf is None or isinstance(leaf, bool):
        return ()
    text = str(leaf)
    if len(text.split()) < _PROSE_WORDS:
        return (text,)
    identifiers = (token.strip(".:/#+-") for token in _TOKEN.findall(text) if _IDENTIFYING.search(token))
    return [*identifiers, *_NAME.findall(text)]


def mentions(text: str, value: str) -> bool:
    """Whether a normalised text holds a normalised value as a whole, not as a part of a longer word or number."""
    if value not in text:
        return False
    return re.search(rf"(?<!\w)(?<!\d\.){re.escape(value)}(?!\w|\.\d)", text) is not None
