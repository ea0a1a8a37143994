"""Tool schemas: whether they are usable, and whether the arguments of a call satisfy them."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import FormatChecker
from jsonschema.exceptions import SchemaError as _JsonSchemaError
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from steptool.environments.base import describe_error
from steptool.environments.validators import (
    ValidatorClass,
    compile_pattern,
    extra_properties,
    time_limit,
    validator_class,
)

_APPLICATORS = {
    *("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
    *("dependentSchemas", "dependencies", "unevaluatedProperties"),
}
"""Keywords beside which `properties` is not the whole list of what a value may have."""
_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Keywords that hold schemas by name."""
_VALUES = {"enum", "const", "default", "examples"}
"""Keywords that hold values, not schemas."""
_READ_SECONDS = 10.0
"""Seconds of CPU time that trying a schema out may take."""
_PROBES: tuple[Any, ...] = (None, {}, [], "", 1.5)
_DRAFTS = "draft 2020-12, or the one in its $schema"
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
        name = _check_tool(tool, f"{where}: tools[{number}]")
        if name in names:
            raise SchemaError(
                f"{where}: tools[{number}].function.name: '{name}' is given twice; names must be distinct"
            )
        names.add(name)


def _check_tool(tool: Any, where: str) -> str:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        got = tool.get("type") if isinstance(tool, Mapping) else tool
        raise SchemaError(f'{where}.type: expected "function", got {_to_text(got)}; write tools in OpenAI\'s form')
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
    problem = None if _is_plain(parameters) else _schema_problem(_key(parameters))
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
def _schema_problem(schema_json: str) -> str | None:
    """What is wrong with a schema, or None: it is read, its references are resolved, and it is tried out."""
    try:
        schema = json.loads(schema_json)
        validators = validator_class(schema)
        # The metaschema would ask Python's own engine for patterns, which knows fewer than ours.
        validators.check_schema(schema, format_checker=FormatChecker(()))
        with time_limit(_READ_SECONDS):
            return _fault(schema, validators)
    except _JsonSchemaError as error:
        path = "".join(f".{part}" for part in error.absolute_path)
        return f"{path}: not a JSON Schema ({_DRAFTS}): {_shorten(error.message)}"
    except Unresolvable as error:
        reference = getattr(error, "anchor", error.ref)
        return f": $ref {_to_text(reference)} points to nothing inside this schema; put the definition under $defs"
    except RecursionError:
        return ": the schema refers to itself without end, or is nested too deeply"
    except Exception as error:  # whatever it is, calls of the tool would meet it as well
        return f": the schema cannot be used: {_shorten(describe_error(error))}"


def _fault(schema: Any, validators: ValidatorClass) -> str | None:
    """What fails when each part of the schema is tried on a value of each type. References may raise here."""
    validator = validators(_remove_drafts(schema), registry=Registry())
    parts = list(_subschemas(schema))
    if any("unevaluatedProperties" in part for part in parts) and any("patternProperties" in part for part in parts):
        return ": patternProperties beside unevaluatedProperties is not supported; use additionalProperties"
    for part in parts:
        for pattern in (part.get("pattern"), *part.get("patternProperties", {})):
            if isinstance(pattern, str):
                compile_pattern(pattern)
        for value in _PROBES:
            deque(validator.descend(value, part), maxlen=0)
    return None


def _subschemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema, itself included; values that only look like schemas are left out."""
    if isinstance(node, list):
        for child in node:
            yield from _subschemas(child)
    if not isinstance(node, dict):
        return
    yield node
    for keyword, value in node.items():
        if keyword in _BY_NAME and isinstance(value, dict):
            yield from _subschemas(list(value.values()))
        elif keyword not in _VALUES:
            yield from _subschemas(value)


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
    return arguments_check(parameters)(arguments)


def arguments_check(parameters: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str | None]:
    """`check_arguments` for one tool, made ready for many calls."""

    def check(arguments: Mapping[str, Any]) -> str | None:
        try:
            with time_limit():
                error = best_match(_validator(key).iter_errors(arguments))
                return None if error is None else _sentence(error)
        except Exception as error:
            return f"the arguments cannot be checked: {_shorten(describe_error(error))}."

    key = _key(parameters)
    return check


def _key(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=1 << 14)
def _validator(schema_json: str) -> Any:
    schema = json.loads(schema_json)
    validators = validator_class(schema)
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


def _sentence(error: ValidationError) -> str:
    path = ".".join(str(part) for part in error.absolute_path)
    inside = f" in '{path}'" if path else ""
    instance: Any = error.instance
    expected: Any = error.validator_value
    value = _to_text(instance)
    schema: Any = error.schema
    if error.validator == "required":
        return f"missing required argument {_names(n for n in expected if n not in instance)}{inside}."
    if error.validator in ("additionalProperties", "unevaluatedProperties") and expected is False:
        return f"unknown argument {_names(extra_properties(instance, schema))}{inside}."
    if error.validator == "type":
        kinds = [expected] if isinstance(expected, str) else expected
        subject = f"argument '{path}'" if path else "the arguments"
        return f"{subject} must be {' or '.join(kinds)}, got {value}."
    if error.validator == "enum":
        return f"argument '{path}' must be one of {_to_text(expected)}, got {value}."
    return f"argument{inside} is not valid: {_shorten(error.message)}."


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _to_text(value: Any) -> str:
    return _shorten(json.dumps(value, ensure_ascii=False, default=str))


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
