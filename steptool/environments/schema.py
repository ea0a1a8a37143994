"""Tool schemas: are they schemas, and do the arguments of a call satisfy them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError as _JsonSchemaError
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_STANDALONE = {"type", "properties", "required", "description", "title"}
"""Keywords beside which no other one can know of further properties."""
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
        raise SchemaError(f'{where}.type: expected "function", got {_shown(got)}; write tools in OpenAI\'s form')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise SchemaError(f"{where}.function: expected an object, got {_shown(function)}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(f"{where}.function.name: expected 1 to 64 letters, digits, '_' or '-', got {_shown(name)}")
    description = function.get("description")
    if not isinstance(description, str):
        raise SchemaError(f"{where}.function.description: expected a string, got {_shown(description)}")
    _check_parameters(function.get("parameters"), f"{where}.function.parameters")
    return name


def _check_parameters(parameters: Any, where: str) -> None:
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        raise SchemaError(f'{where}: expected a JSON Schema of type "object", got {_shown(parameters)}')
    problem = None if _is_plain(parameters) else _schema_problem(_key(parameters))
    if problem:
        raise SchemaError(f"{where}{problem}")


def _is_plain(parameters: Mapping[str, Any]) -> bool:
    """Whether these are parameters as most tools have them: a schema at sight, at a thousandth of a check's cost."""
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
    schema = json.loads(schema_json)
    try:
        Draft202012Validator.check_schema(schema)
    except _JsonSchemaError as error:
        path = "".join(f".{part}" for part in error.absolute_path)
        return f"{path}: not a JSON Schema (draft 2020-12): {_shortened(error.message)}"
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return f": $ref {_shown(reference)} points to nothing inside this schema; put the definition under $defs"
    return None


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _references(child)


def check_arguments(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """None if the arguments satisfy the tool's JSON schema, else one sentence that says what is wrong.

    Stricter than JSON Schema in one thing: where a schema lists `properties`, other arguments are refused unless it
    says otherwise (`additionalProperties`, `unevaluatedProperties`).
    """
    return arguments_check(parameters)(arguments)


def arguments_check(parameters: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str | None]:
    """`check_arguments` for one tool, made ready for many calls."""
    validator = _validator(_key(parameters))

    def check(arguments: Mapping[str, Any]) -> str | None:
        error = best_match(validator.iter_errors(arguments))
        return None if error is None else _sentence(error)

    return check


def _key(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=1 << 14)
def _validator(schema_json: str) -> Draft202012Validator:
    schema = json.loads(schema_json)
    if "properties" in schema:
        # Both mean the same to a schema that stands alone, and the first is checked much faster.
        closed = "additionalProperties" if schema.keys() <= _STANDALONE else "unevaluatedProperties"
        schema.setdefault(closed, False)
    return Draft202012Validator(schema, registry=Registry())


def _sentence(error: ValidationError) -> str:
    path = ".".join(str(part) for part in error.absolute_path)
    inside = f" in '{path}'" if path else ""
    given: Any = error.instance
    expected: Any = error.validator_value
    value = _shown(given)
    if error.validator == "required":
        return f"missing required argument {_names(n for n in expected if n not in given)}{inside}."
    if error.validator in ("additionalProperties", "unevaluatedProperties") and expected is False:
        known = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
        return f"unknown argument {_names(n for n in given if n not in known)}{inside}."
    if error.validator == "type":
        kinds = [expected] if isinstance(expected, str) else expected
        subject = f"argument '{path}'" if path else "the arguments"
        return f"{subject} must be {' or '.join(kinds)}, got {value}."
    if error.validator == "enum":
        return f"argument '{path}' must be one of {_shown(expected)}, got {value}."
    return f"argument{inside} is not valid: {_shortened(error.message)}."


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _shown(value: Any) -> str:
    return _shortened(json.dumps(value, ensure_ascii=False, default=str))


def _shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
