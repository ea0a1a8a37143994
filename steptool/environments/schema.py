"""Tool schemas: whether they are usable, and whether the arguments of a call satisfy them.

A schema comes from data or from a server, so neither its patterns nor its size can be trusted. The validators, one for
each draft, extend those of `jsonschema` and end in time for any schema and any value: each keyword first looks at the
clock, patterns run in an engine that takes a time limit, and uniqueness is decided by hashing. After them `check_tools`
applies them to the schemas of tools, and `check_arguments` to the arguments of a call.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import jsonschema.validators
import regex
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError as _JsonSchemaError
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from steptool.artifacts.errors import describe_with_class

CHECK_SECONDS = 1.0
"""Seconds that the check of one call's arguments may take, of the CPU time of its thread: other work does not count."""
MAX_PATTERN = 100_000
"""Characters of a pattern once its counted repetitions are written out: a{3}b counts 4."""
_PATTERN_PARTS = regex.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|.", regex.DOTALL)
_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))

ValidatorClass = Any
"""A validator class of `jsonschema`. The library declares no type with all attributes of its classes."""
Keyword = Callable[[Any, Any, Any, Any], Any]
"""What checks one keyword: (validator, value of the keyword, instance, schema) -> errors, or None."""


class CheckTimeout(Exception):
    """A check took longer than it may."""


@contextmanager
def limit_time(seconds: float = CHECK_SECONDS) -> Iterator[None]:
    """Let the validators of this module raise CheckTimeout after so many seconds of CPU time of this thread."""
    token = _deadline.set(time.thread_time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def choose_validator(schema: Mapping[str, Any]) -> ValidatorClass:
    """The validator of the draft that the schema declares; of draft 2020-12 if it declares none or an unknown one."""
    declared = schema.get("$schema")
    dialect = {"$schema": declared if isinstance(declared, str) else ""}
    draft = jsonschema.validators.validator_for(dialect, default=Draft202012Validator)
    return _BOUNDED.get(draft, _BOUNDED[Draft202012Validator])


@lru_cache(maxsize=1 << 12)
def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The pattern, ready to run. Raises ValueError if it is no regular expression or too large."""
    if _measure_expanded_length(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern is longer than {MAX_PATTERN} characters once its repetitions are written out")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern is not a regular expression: {error}") from None


def _measure_expanded_length(pattern: str) -> int:
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


def find_extra_properties(instance: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Names of the properties that the schema neither lists nor has a pattern for."""
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return [name for name in instance if name not in properties and not any(_matches(p, name) for p in patterns)]


def _matches(pattern: str, text: str) -> bool:
    seconds = min(_deadline.get() - time.thread_time(), CHECK_SECONDS)
    try:
        return compile_pattern(pattern).search(text, timeout=max(seconds, 1e-3)) is not None
    except TimeoutError:
        raise CheckTimeout(f"the pattern {pattern[:100]!r} takes too long") from None


def _check_pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for name in [name for name in instance if _matches(pattern, name)]:
                yield from validator.descend(instance[name], subschema, path=name, schema_path=pattern)


def _check_additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    extras = find_extra_properties(instance, schema)
    if validator.is_type(allowed, "object"):
        for name in extras:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extras:
        yield ValidationError(f"additional properties are not allowed: {', '.join(map(repr, extras))}")


def _check_unique_items(validator: Any, unique: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if unique and validator.is_type(instance, "array") and len(set(map(_make_hashable, instance))) < len(instance):
        yield ValidationError("the elements of the array are not all different")


def _make_hashable(value: Any) -> Any:
    """A key that two JSON values share if and only if they are equal: 1 equals 1.0, and true does not."""
    if isinstance(value, Mapping):
        return "object", frozenset((name, _make_hashable(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return "array", tuple(map(_make_hashable, value))
    return ("boolean", value) if isinstance(value, bool) else value


def _limit_keyword(keyword: Keyword) -> Keyword:
    """The same check, which raises CheckTimeout once the time is up."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if time.thread_time() > _deadline.get():
            raise CheckTimeout("the schema takes too long to check")
        return keyword(validator, value, instance, schema)

    return check


def _extend(draft: ValidatorClass) -> ValidatorClass:
    own_keywords: dict[str, Keyword] = {
        "pattern": _check_pattern,
        "patternProperties": _check_pattern_properties,
        "additionalProperties": _check_additional_properties,
        "uniqueItems": _check_unique_items,
    }
    keywords = {name: _limit_keyword(keyword) for name, keyword in {**draft.VALIDATORS, **own_keywords}.items()}
    return jsonschema.validators.extend(draft, keywords)  # type: ignore[no-untyped-call]


_BOUNDED: Mapping[ValidatorClass, ValidatorClass] = {
    draft: _extend(draft)
    for draft in (
        *(jsonschema.Draft4Validator, jsonschema.Draft6Validator, jsonschema.Draft7Validator),
        *(jsonschema.Draft201909Validator, Draft202012Validator),
    )
}

_APPLICATORS = {
    *("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
    *("dependentSchemas", "dependencies", "unevaluatedProperties"),
}
"""Keywords that can allow further properties: `properties` is not the whole list in a schema with one of them."""
_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Keywords that hold schemas by name."""
_VALUES = {"enum", "const", "default", "examples"}
"""Keywords that hold values, not schemas."""
_READ_SECONDS = 10.0
"""Seconds of CPU time that trying a schema out may take."""
_PROBES: tuple[Any, ...] = (None, {}, [], "", 1.5)
_TYPES = ("string", "number", "integer", "boolean", "array", "object")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SchemaError(ValueError):
    """A tool is not described by an OpenAI function schema."""


def check_tools(tools: Any, where: str) -> None:
    """Refuse whatever is not a list of OpenAI function schemas with distinct names.

    `where` names the file and the row, for the message. Raises SchemaError naming the tool and the field.
    """
    if not isinstance(tools, list | tuple):
        raise SchemaError(f"{where}: field 'tools': expected a list of tool schemas, got {type(tools).__name__}")
    names: set[str] = set()
    for number, tool in enumerate(tools):
        place = f"{where}: tools[{number}]"
        name = _check_tool(tool, place)
        if name in names:
            raise SchemaError(f"{place}.function.name: '{name}' is given twice; names must be distinct")
        names.add(name)


def _check_tool(tool: Any, where: str) -> str:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        raise SchemaError(f'{where}.type: expected "function", got {_to_text(kind)}; write tools in OpenAI\'s form')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise SchemaError(f"{where}.function: expected an object, got {_to_text(function)}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(f"{where}.function.name: expected 1 to 64 letters, digits, '_' or '-', got {_to_text(name)}")
    description = function.get("description")
    if not isinstance(description, str):
        raise SchemaError(f"{where}.function.description: expected a string, got {_to_text(description)}")
    _check_parameters(function.get("parameters"), f"{where}.function.parameters")
    return name


def _check_parameters(parameters: Any, where: str) -> None:
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        raise SchemaError(f'{where}: expected a JSON Schema of type "object", got {_to_text(parameters)}')
    problem = None if _is_plain(parameters) else _find_schema_problem(_make_key(parameters))
    if problem:
        raise SchemaError(f"{where}{problem}")


def _is_plain(parameters: Mapping[str, Any]) -> bool:
    """Whether these are parameters of the most common form, which need no further and much slower check."""
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    return (
        parameters.keys() <= {"type", "properties", "required"}
        and isinstance(properties, dict)
        and all(_is_plain_property(schema) for schema in properties.values())
        and isinstance(required, list)
        and all(isinstance(name, str) for name in required)
        and len(set(required)) == len(required)
    )


def _is_plain_property(schema: Any) -> bool:
    return (
        isinstance(schema, dict)
        and schema.keys() <= {"type", "description", "enum", "examples", "default"}
        and schema.get("type") in _TYPES
        and isinstance(schema.get("description", ""), str)
        and isinstance(schema.get("enum", []), list)
        and isinstance(schema.get("examples", []), list)
    )


@lru_cache(maxsize=1 << 14)
def _find_schema_problem(schema_json: str) -> str | None:
    """What is wrong with a schema, or None: it is read, its references are resolved, and it is tried out."""
    try:
        schema = json.loads(schema_json)
        validators = choose_validator(schema)
        # The metaschema would ask Python's own engine for patterns, which knows fewer than ours.
        validators.check_schema(schema, format_checker=FormatChecker(()))
        with limit_time(_READ_SECONDS):
            return _find_fault(schema, validators)
    except _JsonSchemaError as error:
        path = "".join(f".{part}" for part in error.absolute_path)
        return f"{path}: not a JSON Schema (draft 2020-12, or the one in its $schema): {_shorten(error.message)}"
    except Unresolvable as error:
        reference = getattr(error, "anchor", error.ref)
        return f": $ref {_to_text(reference)} points to nothing inside this schema; put the definition under $defs"
    except RecursionError:
        return ": the schema refers to itself without end, or is nested too deeply"
    except Exception as error:  # whatever it is, calls of the tool would meet it as well
        return f": the schema cannot be used: {_shorten(describe_with_class(error))}"


def _find_fault(schema: Any, validators: ValidatorClass) -> str | None:
    """What fails when each part of the schema is tried on a value of each type. References may raise here."""
    validator = validators(_remove_drafts(schema), registry=Registry())
    parts = list(_iterate_subschemas(schema))
    if any("unevaluatedProperties" in part for part in parts) and any("patternProperties" in part for part in parts):
        return ": patternProperties beside unevaluatedProperties is not supported; use additionalProperties"
    for part in parts:
        for pattern in (part.get("pattern"), *part.get("patternProperties", {})):
            if isinstance(pattern, str):
                compile_pattern(pattern)
        for value in _PROBES:
            deque(validator.descend(value, part), maxlen=0)
    return None


def _iterate_subschemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema, itself included; values that only look like schemas are left out."""
    if isinstance(node, list):
        for child in node:
            yield from _iterate_subschemas(child)
    if not isinstance(node, dict):
        return
    yield node
    for keyword, value in node.items():
        if keyword in _BY_NAME and isinstance(value, dict):
            yield from _iterate_subschemas(list(value.values()))
        elif keyword not in _VALUES:
            yield from _iterate_subschemas(value)


def _remove_drafts(node: Any) -> Any:
    """The schema without `$schema`, which would bring back the library's own validators wherever it stands."""
    if isinstance(node, list):
        return [_remove_drafts(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {k: _remove_drafts(v) for k, v in node.items() if not (k == "$schema" and isinstance(v, str))}


def check_arguments(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """None if the arguments satisfy the tool's JSON schema, else one sentence that says what is wrong.

    Stricter than JSON Schema in one thing: where a schema lists `properties`, other arguments are refused unless it
    says otherwise (`additionalProperties`, `unevaluatedProperties`). Never raises: what cannot be checked, or not
    within CHECK_SECONDS, is a problem as well.
    """
    return prepare_arguments_check(parameters)(arguments)


def prepare_arguments_check(parameters: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str | None]:
    """`check_arguments` for one tool, made ready for many calls."""
    key = _make_key(parameters)

    def check(arguments: Mapping[str, Any]) -> str | None:
        try:
            with limit_time():
                error = best_match(_make_validator(key).iter_errors(arguments))
                return None if error is None else _write_sentence(error)
        except Exception as error:
            return f"the arguments cannot be checked: {_shorten(describe_with_class(error))}."

    return check


def _make_key(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=1 << 14)
def _make_validator(schema_json: str) -> Any:
    schema = json.loads(schema_json)
    validators = choose_validator(schema)
    return validators(_close(_remove_drafts(schema), validators), registry=Registry())


def _close(schema: dict[str, Any], validators: ValidatorClass) -> dict[str, Any]:
    """The schema of a tool that refuses arguments it does not list, unless it says otherwise."""
    if "properties" not in schema:
        return schema
    if schema.keys().isdisjoint(_APPLICATORS):
        # Both keywords mean the same to a schema that stands alone, and this one is checked much faster.
        return {"additionalProperties": False, **schema}
    if "unevaluatedProperties" not in validators.VALIDATORS or "patternProperties" in json.dumps(schema):
        return schema  # other parts of the schema may allow more
    return {"unevaluatedProperties": False, **schema}


def _write_sentence(error: ValidationError) -> str:
    path = ".".join(str(part) for part in error.absolute_path)
    inside = f" in '{path}'" if path else ""
    instance: Any = error.instance
    expected: Any = error.validator_value
    value = _to_text(instance)
    schema: Any = error.schema
    if error.validator == "required":
        return f"missing required argument {_quote_names(n for n in expected if n not in instance)}{inside}."
    if error.validator in ("additionalProperties", "unevaluatedProperties") and expected is False:
        return f"unknown argument {_quote_names(find_extra_properties(instance, schema))}{inside}."
    if error.validator == "type":
        kinds = [expected] if isinstance(expected, str) else expected
        subject = f"argument '{path}'" if path else "the arguments"
        return f"{subject} must be {' or '.join(kinds)}, got {value}."
    if error.validator == "enum":
        return f"argument '{path}' must be one of {_to_text(expected)}, got {value}."
    return f"argument{inside} is not valid: {_shorten(error.message)}."


def _quote_names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _to_text(value: Any) -> str:
    return _shorten(json.dumps(value, ensure_ascii=False, default=str))


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
