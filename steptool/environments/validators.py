"""Validators of JSON Schema that end in time, whatever the schema and whatever the value.

A schema comes from data or from a server, so neither its patterns nor its size can be trusted. These validators extend
those of `jsonschema`: each keyword first looks at the clock, patterns run in an engine that takes a time limit, and
uniqueness is decided by hashing. Each draft has its own validator; a schema names its draft in `$schema`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import jsonschema.validators
import regex
from jsonschema import Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError

CHECK_SECONDS = 1.0
"""Seconds that the check of one call's arguments may take, of the CPU time of its thread: other work does not count."""
MAX_PATTERN = 100_000
"""Characters of a pattern once its counted repetitions are written out: a{3}b counts 4."""
_PATTERN_PARTS = regex.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|.", regex.DOTALL)
_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))

ValidatorClass = Any
"""A class of `jsonschema`, which declares no type that has all of what its classes have."""
Keyword = Callable[[Any, Any, Any, Any], Any]
"""What checks one keyword: (validator, value of the keyword, instance, schema) -> errors, or None."""


class CheckTimeout(Exception):
    """A check took longer than it may."""


@contextmanager
def time_limit(seconds: float = CHECK_SECONDS) -> Iterator[None]:
    """Let the validators of this module raise CheckTimeout after so many seconds of CPU time of this thread."""
    token = _deadline.set(time.thread_time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def validator_class(schema: Mapping[str, Any]) -> ValidatorClass:
    """The validator of the draft that the schema declares; of draft 2020-12 if it declares none or an unknown one."""
    declared = schema.get("$schema")
    dialect = {"$schema": declared if isinstance(declared, str) else ""}
    draft = jsonschema.validators.validator_for(dialect, default=Draft202012Validator)
    return _BOUNDED.get(draft, _BOUNDED[Draft202012Validator])


@lru_cache(maxsize=1 << 12)
def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The pattern, ready to run. Raises ValueError if it is no regular expression or too large."""
    if _expanded_length(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern is longer than {MAX_PATTERN} characters once its repetitions are written out")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern is not a regular expression: {error}") from None


def _expanded_length(pattern: str) -> int:
    """Length of the pattern with counted repetitions written out: what it costs to compile."""
    totals, last = [0], 0
    for part in _PATTERN_PARTS.findall(pattern):
        if part == "(":
            totals.append(0)
        elif part == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif len(part) > 2 and part[0] == "{":
            times = max(1, *(int(bound or 1) for bound in part[1:-1].split(",")))
            totals[-1] += last * (times - 1)
            last *= times
        else:
            totals[-1] += 1
            last = 1
    return sum(totals)


def extra_properties(instance: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Names of the properties that the schema neither lists nor has a pattern for."""
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return [name for name in instance if name not in properties and not any(_matches(p, name) for p in patterns)]


def _matches(pattern: str, text: str) -> bool:
    seconds = min(_deadline.get() - time.thread_time(), CHECK_SECONDS)
    try:
        return compile_pattern(pattern).search(text, timeout=max(seconds, 1e-3)) is not None
    except TimeoutError:
        raise CheckTimeout(f"the pattern {pattern[:100]!r} takes too long") from None


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for name in [name for name in instance if _matches(pattern, name)]:
                yield from validator.descend(instance[name], subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    extras = extra_properties(instance, schema)
    if validator.is_type(allowed, "object"):
        for name in extras:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extras:
        yield ValidationError(f"additional properties are not allowed: {', '.join(map(repr, extras))}")


def _unique_items(validator: Any, unique: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if unique and validator.is_type(instance, "array") and len(set(map(_hashable, instance))) < len(instance):
        yield ValidationError("the elements of the array are not all different")


def _hashable(value: Any) -> Any:
    """A key that two JSON values share if and only if they are equal: 1 equals 1.0, and true does not."""
    if isinstance(value, Mapping):
        return "object", frozenset((name, _hashable(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return "array", tuple(map(_hashable, value))
    return ("boolean", value) if isinstance(value, bool) else value


def _bound(keyword: Keyword) -> Keyword:
    """The same check, made only while there is time."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if time.thread_time() > _deadline.get():
            raise CheckTimeout("the schema takes too long to check")
        return keyword(validator, value, instance, schema)

    return check


def _extend(draft: ValidatorClass) -> ValidatorClass:
    own_keywords: dict[str, Keyword] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    keywords = {name: _bound(keyword) for name, keyword in {**draft.VALIDATORS, **own_keywords}.items()}
    return jsonschema.validators.extend(draft, keywords)  # type: ignore[no-untyped-call]


_BOUNDED: Mapping[ValidatorClass, ValidatorClass] = {
    draft: _extend(draft)
    for draft in (Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator)
}
