"""Reads what tools return, finds failures in the text, and scores final answers by rule.

An observation can be anything: JSON, Python's notation, prose, truncated or broken text. No function here raises.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from steptool.records import Query, StopReason, Trajectory

_MAX_DEPTH = 100
_MAX_LITERAL = 200_000
"""Most characters of a text that is tried as Python's notation."""
_SHORT = 200
"""Most characters of a text that can be nothing but an error message."""

_BROKEN_ENVELOPE = re.compile(r"""^\{\s*["']error["']\s*:\s*(["'][^"'\s]|\{)""")
_CUT_ENVELOPE = re.compile(r"""^\{\s*["']error["']\s*:\s*["']\s*["']\s*,\s*["']response["']\s*:\s*["']?""")
"""The part before the response in an envelope that was cut off and reports no error."""
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
_ENDS_INSIDE, _GOES_ON = re.compile(r"(\w|\d\.)\Z"), re.compile(r"\w|\.\d")
"""The end of a text, and the beginning of one, between which no value can stand as a whole."""
LOOKS_LIKE_A_THING = re.compile(r"^\S*@\S+$|^(?=\S*\d)(?=\S*[a-z])[\w#]+[_#-][\w-]+$", re.I)
"""Values that look like the name of a thing, such as addresses and ord_07. A date does not."""
_PROSE_WORDS = 4
"""Fewest words of a string that counts as prose and not as a value."""


def parse_observation(text: str) -> Any:
    """The observation as a value: JSON or Python's notation where it is one, else the text itself."""
    stripped = text.strip()
    if stripped[:1] not in ("{", "[", '"') and stripped[:20].strip("-+.eE0123456789"):
        return text
    if _measure_depth(stripped) > _MAX_DEPTH:
        return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        return _parse_literal(stripped) if stripped[:1] in ("{", "[") else text


def _parse_literal(text: str) -> Any:
    if len(text) > _MAX_LITERAL:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _measure_depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[({\])}]", text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest


def read_payload(observation: str) -> Any:
    """What the tool returned: the observation parsed, taken out of a {"error", "response"} envelope if it is in one."""
    value = parse_observation(observation)
    if isinstance(value, dict) and set(value) == {"error", "response"}:
        inner = value["response"]
        return parse_observation(inner) if isinstance(inner, str) else inner
    return value


def find_failure(observation: str) -> str:
    """Why the text says that the tool failed, although it may have reported success; empty if it does not say so."""
    value = parse_observation(observation)
    if isinstance(value, Mapping):
        return _find_failure_in_fields(value) or _find_failure_inside(read_payload(observation), value)
    return _find_failure_in_text(value) if isinstance(value, str) else ""


def _find_failure_inside(inner: Any, outer: Mapping[Any, Any]) -> str:
    if inner is outer:
        return ""
    if isinstance(inner, Mapping):
        return _find_failure_in_fields(inner)
    return _find_failure_in_text(inner) if isinstance(inner, str) else ""


def _find_failure_in_fields(fields: Mapping[Any, Any]) -> str:
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
        return next(filter(None, (_find_failure_in_text(str(text)) for text in low.values())), "")
    return ""


def _says_error(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _NO_ERROR
    return not isinstance(value, float) and bool(value)


def _is_error_code(value: Any) -> bool:
    text = str(value).strip().lower()
    return text in {"error", "fail", "failed", "failure"} or re.fullmatch(r"[45]\d\d", text) is not None


def _find_failure_in_text(text: str) -> str:
    stripped = text.strip()
    if match := _CUT_ENVELOPE.match(stripped):
        stripped = stripped[match.end() :].replace('\\"', '"')
    if _BROKEN_ENVELOPE.match(stripped) or _OPENING.match(stripped):
        return stripped[:_SHORT]
    return stripped if len(stripped) <= _SHORT and _MESSAGE.search(stripped) else ""


def normalise(text: str) -> str:
    """Text for comparison: NFKC, lower case, single spaces, 1,200.50 as 1200.5 and 3.0 as 3."""
    return _normalise_short(text) if len(text) <= _SHORT else _normalise(text)


def _normalise(text: str) -> str:
    normalised = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _DECIMALS.sub(lambda m: m[0].rstrip("0").rstrip("."), _THOUSANDS.sub("", normalised))


_normalise_short = lru_cache(4096)(_normalise)
"""Values come up again in every step of an episode."""


def iterate_leaves(value: Any) -> Iterator[Any]:
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


def flatten_text(value: Any) -> str:
    """All leaves of a value as one normalised text, one leaf per line."""
    return "\n".join(normalise(str(leaf)) for leaf in iterate_leaves(value))


def find_values(value: Any) -> frozenset[str]:
    """The values that a later call or the answer could use, normalised.

    They are the leaves of structures, and the identifiers, numbers and names in prose. Truth values, null, single
    letters and bare words of success are left out: they say nothing by themselves.
    """
    parts = map(normalise, (part for leaf in iterate_leaves(value) for part in _list_values(leaf)))
    return frozenset(v for v in parts if v not in _NO_VALUE and not (len(v) == 1 and v.isalpha()))


def _list_values(leaf: Any) -> Iterable[str]:
    if leaf is None or isinstance(leaf, bool):
        return ()
    text = str(leaf)
    if len(text.split()) < _PROSE_WORDS:
        return (text,)
    identifiers = (token.strip(".:/#+-") for token in _TOKEN.findall(text) if _IDENTIFYING.search(token))
    return [*identifiers, *_NAME.findall(text)]


def mentions(text: str, value: str) -> bool:
    """Whether a normalised text holds a normalised value as a whole, not as a part of a longer word or number."""
    start = text.find(value)
    while start >= 0:
        if not _ENDS_INSIDE.search(text, max(0, start - 2), start) and not _GOES_ON.match(text, start + len(value)):
            return True
        start = text.find(value, start + 1)
    return False


UNSURE = 0.5
"""IsSolved of an answer that nothing can check."""

_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|apologies|as an ai|unfortunately|(i|we)('m| am| are|'re| was| were)? ?(unable|not able) to|"
    r"(i|we) (cannot|can't|can not|could not|couldn't|do not have|don't have|failed to))\b",
    re.I,
)
_ANSWER_OPENING = 120
"""Characters at the beginning of an answer that are searched for a refusal."""


def is_solved(query: Query, trajectory: Trajectory) -> float:
    """IsSolved by rule, in {0, 0.5, 1}.

    With a reference answer it is `matches_reference`, else the environment's verdict if there is one. Without either it
    is 0 for an episode without a Finish, for one that gave up, for an empty answer and for one that opens with an
    apology or a refusal. It is 0.5 for other answers, and for an episode that the environment has ended.
    """
    matches = matches_reference(query, trajectory)
    if matches is not None:
        return matches
    if trajectory.solved is not None:
        return trajectory.solved
    if trajectory.stop_reason is StopReason.ENDED:
        return UNSURE
    answer = _get_given_answer(trajectory)
    return 0.0 if not answer or _REFUSAL.search(answer[:_ANSWER_OPENING]) else UNSURE


def matches_reference(query: Query, trajectory: Trajectory) -> float | None:
    """1 if the final answer equals the reference answer, else 0; None for a query without one, or with an empty one.

    Two answers are equal if they are the same text after normalisation (case, spaces, numbers written alike, marks at
    the end), or the same JSON value. JSON values compare by type: 1 equals 1.0, but neither true nor "1".
    """
    expected = query.reference.answer
    if not expected:
        return None
    answer = _get_given_answer(trajectory)
    if not answer:
        return 0.0
    is_same_text = _strip_punctuation(answer) == _strip_punctuation(expected)
    return float(is_same_text or is_same_json(parse_observation(answer), parse_observation(expected)))


def is_same_json(one: object, other: object) -> bool:
    """Whether two parsed JSON values are equal in value and type; an integer equals the same number with a point."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(is_same_json(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _get_given_answer(trajectory: Trajectory) -> str:
    """The final answer; empty where the episode ended without one."""
    return (trajectory.final_answer or "").strip() if trajectory.stop_reason is StopReason.FINISHED else ""


def _strip_punctuation(answer: str) -> str:
    return normalise(answer).strip(" .!\"'")
