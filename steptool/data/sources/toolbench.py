"""Instruction files of ToolBench and StableToolBench: a query with its `api_list` becomes a Query with tool schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.chat.finish import FINISH_SCHEMA
from steptool.data.intake import IngestLog, Record, UnusableError, field, shown, text_field
from steptool.data.readers import files, read
from steptool.environments.schema import SchemaError, check_tools
from steptool.environments.toolbench.naming import NAME_LIMIT, REFERENCE, endpoint, function_name, parameter_name
from steptool.records import FINISH, Query, ToolSchema

DESCRIPTION_LIMIT = 256
"""Characters of a description that ToolBench shows to the model."""
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


def _endpoints(api_list: Sequence[Any], schemas: Mapping[tuple[str, str], ToolSchema]) -> dict[str, list[str]]:
    """What a request names for each function; not for one of an API without a category."""
    found: dict[str, list[str]] = {}
    for api in api_list:
        key, category = (api["tool_name"], api["api_name"]), api.get("category_name")
        if isinstance(category, str):
            found.setdefault(schemas[key]["function"]["name"], list(endpoint(category, *key)))
    return found


def json_type(recorded: Any) -> str:
    """JSON Schema's type for a type as ToolBench writes it."""
    return _TYPES.get(str(recorded).lower(), "string")


def _schema(name: str, api: Mapping[str, Any], where: str) -> ToolSchema:
    """The schema of an API; whatever the API holds, it is one."""
    needed, optional = _properties(api, "required", where), _properties(api, "optional", where)
    properties = {**needed, **{key: schema for key, schema in optional.items() if key not in needed}}
    description = str(api.get("api_description") or "").strip()[:DESCRIPTION_LIMIT]
    return function_schema(name, description or f"{api['api_name']} ({api['tool_name']})", properties, list(needed))


def _properties(api: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """JSON Schema's properties for the parameters of a kind; of those with one name the first."""
    found: dict[str, Any] = {}
    given_as = "examples" if kind == "required" else "default"
    for number, parameter in enumerate(field(api, f"{kind}_parameters", list, where)):
        name = parameter.get("name") if isinstance(parameter, dict) else None
        if not isinstance(name, str) or not name.strip():
            text_field(parameter, "name", f"{where}.{kind}_parameters[{number}]")  # says what is wrong
        key = parameter_name(name)
        if key not in found:
            found[key] = _property(parameter, given_as)
    return found


def _property(parameter: Mapping[str, Any], given_as: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": json_type(parameter.get("type"))}
    if description := str(parameter.get("description") or "").strip()[:DESCRIPTION_LIMIT]:
        schema["description"] = description
    default = parameter.get("default")
    if default not in ("", None):
        schema[given_as] = [default] if given_as == "examples" else default
    return schema


def function_schema(name: str, description: str, properties: Mapping[str, Any], required: Sequence[str]) -> ToolSchema:
    """A tool in OpenAI's form."""
    parameters = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def with_finish(tools: Sequence[ToolSchema]) -> tuple[ToolSchema, ...]:
    """The tools and, as the last one, the call that ends an episode."""
    return (*(t for t in tools if t["function"]["name"] != FINISH), FINISH_SCHEMA)


def checked(tools: Sequence[Any], where: str) -> tuple[ToolSchema, ...]:
    """The tools and Finish. Raises UnusableError naming the tool that is no tool schema."""
    try:
        check_tools(tools, where)
    except SchemaError as error:
        raise UnusableError("tool schema that is no schema", str(error)) from None
    return with_finish(tools)


def recorded_tools(functions: Sequence[Any], field_name: str) -> tuple[ToolSchema, ...]:
    """Functions as ToolBench records them, bare or in OpenAI's form, as tool schemas.

    Raises UnusableError naming the field.
    """
    schemas: dict[str, ToolSchema] = {}
    for number, tool in enumerate(functions):
        where = f"{field_name}[{number}]"
        function = tool["function"] if isinstance(tool, dict) and "function" in tool else tool
        name = text_field(function, "name", where)
        parameters = field(function, "parameters", dict, where)
        properties = {
            key: _recorded_property(value) for key, value in field(parameters, "properties", dict, where).items()
        }
        wanted = field(parameters, "required", list, where) if parameters.get("required") else []
        required = [key for key in properties if key in wanted]
        if name != FINISH:
            name = distinct(name, schemas)
            schemas[name] = function_schema(name, str(function.get("description") or ""), properties, required)
    return checked(list(schemas.values()), field_name)


def _recorded_property(recorded: Any) -> dict[str, Any]:
    schema = dict(recorded) if isinstance(recorded, dict) else {}
    example = schema.pop("example_value", None)
    schema["type"] = json_type(schema.get("type"))
    return schema if example in ("", None) else {**schema, "examples": [example]}


def instruction_query(record: Any, file: Path, row: int | str | None) -> Query:
    """A record of an instruction file as a query, without a split. Raises UnusableError naming the field."""
    instruction = text_field(record, "query")
    schemas = tool_schemas(field(record, "api_list", list))
    relevant = _optional_list(record, "relevant APIs")
    return Query(
        query_id=f"{file.stem}-{record.get('query_id', row)}",
        split="",
        environment="replay",
        instruction=instruction,
        tools=with_finish(list(schemas.values())),
        reference={
            "tools": [schema["function"]["name"] for key, schema in schemas.items() if list(key) in relevant],
            REFERENCE: _endpoints(record["api_list"], schemas),
        },
        source="toolbench",
        tier=file.stem,
    )


def _optional_list(record: Mapping[str, Any], name: str) -> list[Any]:
    return list(field(record, name, list)) if name in record else []


def read_instructions(paths: Sequence[str], ledger: IngestLog) -> Iterator[Query]:
    """Queries of instruction files and folders, without splits. What cannot be used goes to the ledger."""
    return read(files(paths, "data.paths", (".json",)), _listed, "queries", ledger)


def _listed(record: Record) -> Query:
    if record.row is None:
        raise UnusableError("not a list of instructions", f"expected a list, got {shown(record.value)}")
    return instruction_query(record.value, record.file, record.row)
