"""Instruction files of ToolBench and StableToolBench: a query with its `api_list` becomes a Query with tool schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.chat.finish import FINISH_SCHEMA
from steptool.data.intake import Ledger, UnusableError, field, files, read_json, text_field, unique
from steptool.tools.schema import SchemaError, check_tools
from steptool.trajectory import FINISH, Query, ToolSchema

NAME_LIMIT = 64
DESCRIPTION_LIMIT = 256
"""Characters of a description that ToolBench shows to the model."""
_RESERVED = frozenset({"from", "class", "return", "false", "true", "id", "and"})
_TYPES = {
    "number": "number",
    "float": "number",
    "integer": "integer",
    "int": "integer",
    "boolean": "boolean",
    "array": "array",
    "list": "array",
    "object": "object",
}
"""JSON Schema's types for ToolBench's; every other one (STRING, ENUM, DATE...) is written as text."""


def standard_name(text: str) -> str:
    """A tool's or API's name as ToolBench writes it in function names: lower case, runs of other characters one `_`."""
    name = re.sub(r"[^a-z0-9]+", "_", re.sub(r"[^a-zA-Z0-9]", "_", text).lower()).strip("_")
    return f"get_{name}" if name[:1].isdigit() else name


def unreserved(name: str) -> str:
    """`is_` before the names that ToolBench keeps free, such as `id` and `from`."""
    return f"is_{name}" if name in _RESERVED else name


def function_name(api_name: str, tool_name: str) -> str:
    """Name of the function for an API of a tool: the last 64 characters of `<api>_for_<tool>`."""
    return f"{unreserved(standard_name(api_name))}_for_{standard_name(tool_name)}"[-NAME_LIMIT:]


def distinct(name: str, taken: Mapping[str, Any] | set[str]) -> str:
    """The name, or where it is taken (long names can end alike) the name with a number in the same 64 characters."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name[: NAME_LIMIT - len(str(number)) - 1]}_{number}"
    return candidate


def tool_schemas(api_list: Sequence[Any]) -> dict[tuple[str, str], ToolSchema]:
    """Tool schemas of an `api_list` by (tool name, API name), in its order. Raises UnusableError naming the field."""
    schemas: dict[tuple[str, str], ToolSchema] = {}
    names: set[str] = set()
    for number, api in enumerate(api_list):
        where = f"api_list[{number}]"
        key = (text_field(api, "tool_name", where), text_field(api, "api_name", where))
        if key not in schemas:
            name = distinct(function_name(key[1], key[0]), names)
            names.add(name)
            schemas[key] = _schema(name, api, where)
    return schemas


def json_type(recorded: Any) -> str:
    """JSON Schema's type for a type as ToolBench writes it."""
    return _TYPES.get(str(recorded).lower(), "string")


def _schema(name: str, api: Mapping[str, Any], where: str) -> ToolSchema:
    required = field(api, "required_parameters", list, where)
    optional = field(api, "optional_parameters", list, where)
    properties: dict[str, Any] = {}
    for kind, parameters in (("required", required), ("optional", optional)):
        for number, parameter in enumerate(parameters):
            at = f"{where}.{kind}_parameters[{number}]"
            properties.setdefault(_parameter_name(parameter, at), _property(parameter, kind))
    wanted = unique(_parameter_name(p, where) for p in required)
    description = str(api.get("api_description") or "").strip()[:DESCRIPTION_LIMIT]
    return function_schema(name, description or f"{api['api_name']} ({api['tool_name']})", properties, wanted)


def _parameter_name(parameter: Any, where: str) -> str:
    name = text_field(parameter, "name", where)
    return unreserved(standard_name(name)) or name


def _property(parameter: Mapping[str, Any], kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": json_type(parameter.get("type"))}
    if description := str(parameter.get("description") or "").strip()[:DESCRIPTION_LIMIT]:
        schema["description"] = description
    default = parameter.get("default")
    if default not in ("", None):
        schema |= {"examples": [default]} if kind == "required" else {"default": default}
    return schema


def function_schema(name: str, description: str, properties: Mapping[str, Any], required: Sequence[str]) -> ToolSchema:
    """A tool in OpenAI's form."""
    parameters = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def with_finish(tools: Sequence[ToolSchema]) -> tuple[ToolSchema, ...]:
    """The tools and, as the last one, the call that ends an episode."""
    return (*(t for t in tools if t["function"]["name"] != FINISH), FINISH_SCHEMA)


def instruction_query(record: Any, file: Path, row: int) -> Query:
    """A record of an instruction file as a query, without a split. Raises UnusableError naming the field."""
    instruction = text_field(record, "query")
    schemas = tool_schemas(field(record, "api_list", list))
    tools = with_finish(list(schemas.values()))
    try:
        check_tools(tools, "api_list")
    except SchemaError as error:
        raise UnusableError("tool schema that is no schema", str(error)) from None
    relevant = _optional_list(record, "relevant APIs")
    return Query(
        query_id=f"{file.stem}-{record.get('query_id', row)}",
        split="",
        environment="replay",
        instruction=instruction,
        tools=tools,
        reference={"tools": [schema["function"]["name"] for key, schema in schemas.items() if list(key) in relevant]},
        source="toolbench",
        tier=file.stem,
    )


def _optional_list(record: Mapping[str, Any], name: str) -> list[Any]:
    return list(field(record, name, list)) if name in record else []


def read_instructions(paths: Sequence[str], ledger: Ledger) -> Iterator[Query]:
    """Queries of instruction files and folders, without splits. What cannot be used goes to the ledger."""
    for file in files(paths, "data.paths", ".json"):
        try:
            records = read_json(file)
            if not isinstance(records, list):
                raise UnusableError("not a list of instructions", f"expected a list, got {type(records).__name__}")
        except UnusableError as error:
            ledger.refuse("queries", file, None, error)
            continue
        for row, record in enumerate(records):
            ledger.count("queries read")
            try:
                yield instruction_query(record, file, row)
            except UnusableError as error:
                ledger.refuse("queries", file, row, error, record)
