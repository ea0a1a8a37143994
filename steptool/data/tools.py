"""Tool schemas from the forms in which others write them, and the tools of environments for those who list none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from steptool.chat.messages import FINISH_SCHEMA, annotate_tool, reads_only
from steptool.config import Config
from steptool.data.parsing import IngestError, UnusableError, require, require_text
from steptool.environments.base import (
    ENVIRONMENTS,
    find_environment_class,
    get_default_environment,
    list_expected_names,
    open_environment,
)
from steptool.environments.schema import SchemaError, check_tools
from steptool.environments.toolbench import NAME_LIMIT, make_function_name, standardise_parameter
from steptool.records import FINISH, ToolSchema

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
_PYTHON_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
}
_SCHEMA_FIELDS = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema")
"""Names under which a tool's JSON schema stands."""
_DECLARATIONS = ("functionDeclarations", "function_declarations")
_TOOL_FIELDS = {"type", "name", "description", "strict", "title", "return", "response", "annotations", "cache_control"}
"""Fields that a tool without parameters may have."""
DESCRIPTION_LIMIT = 256
"""Characters of a description that ToolBench shows to the model."""


def check_and_add_finish(tools: Sequence[Any], where: str) -> tuple[ToolSchema, ...]:
    """The tools with Finish as the last one.

    Raises UnusableError naming the tool that is no tool schema, and for numbers that JSON cannot write.
    """
    try:
        check_tools(tools, where)
        json.dumps(tools, allow_nan=False)
    except SchemaError as error:
        raise UnusableError("tool schema that is no schema", str(error)) from None
    except ValueError as error:
        raise UnusableError("a number that JSON cannot write", f"{where}: {error}") from None
    return add_finish(tools)


def add_finish(tools: Sequence[ToolSchema]) -> tuple[ToolSchema, ...]:
    """The tools and, as the last one, the call that ends an episode."""
    return (*(t for t in tools if t["function"]["name"] != FINISH), FINISH_SCHEMA)


def make_function_schema(
    name: str, description: str, properties: Mapping[str, Any], required: Sequence[str]
) -> ToolSchema:
    """A tool in OpenAI's form."""
    parameters = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def read_openai_tools(tools: Sequence[Any], field: str) -> list[Any]:
    """Tools in OpenAI's form, from those of other writers as well. What may be left out is filled in.

    It reads functions bare or wrapped, schemas named `input_schema` (Anthropic) or `inputSchema` (MCP), Gemini's lists
    of `functionDeclarations`, and parameters without a schema around them (xLAM). Raises UnusableError for a tool that
    has no parameters but fields that are not known.
    """
    functions = [function for tool in tools for function in _list_declarations(tool)]
    return [_make_openai_tool(function, f"{field}[{number}]") for number, function in enumerate(functions)]


def _list_declarations(tool: Any) -> Sequence[Any]:
    """The functions that one entry of a list of tools declares."""
    if not isinstance(tool, dict):
        return [tool]
    declarations = next((tool[key] for key in _DECLARATIONS if isinstance(tool.get(key), list)), None)
    return [tool.get("function", tool)] if declarations is None else declarations


def _make_openai_tool(function: Any, where: str) -> Any:
    if not isinstance(function, dict):
        return function
    fields = {key: value for key, value in function.items() if value is not None and key not in _SCHEMA_FIELDS}
    schema = next((function[key] for key in _SCHEMA_FIELDS if function.get(key) is not None), None)
    if schema is None and (unknown := sorted(fields.keys() - _TOOL_FIELDS)):
        detail = f"{where}: unknown fields {unknown} and no parameters; expected name, description and parameters"
        raise UnusableError("a tool of another form", detail)
    parameters = {"type": "object", "properties": {}} if schema is None else _convert_parameters(schema)
    fields.pop("type", None)
    return {"type": "function", "function": {"description": "", **fields, "parameters": parameters}}


def _convert_parameters(schema: Any) -> Any:
    """A JSON schema of parameters: types in lower case, and an object around bare properties."""
    if not isinstance(schema, dict):
        return schema
    properties = [value for value in schema.values() if isinstance(value, dict) and isinstance(value.get("type"), str)]
    if schema and len(properties) == len(schema):
        optional = {key for key, value in schema.items() if "default" in value or "optional" in value["type"]}
        return {
            "type": "object",
            "properties": {key: _convert_python_property(value) for key, value in schema.items()},
            "required": [key for key in schema if key not in optional],
        }
    return _lower_types(schema) if isinstance(schema.get("type"), str) and schema["type"].isupper() else schema


def _convert_python_property(value: Mapping[str, Any]) -> dict[str, Any]:
    """A property whose type is written as Python writes it ("str", "List[int]", "int, optional")."""
    name = re.split(r"[\[, ]", value["type"].lower())[0]
    return {**value, "type": _PYTHON_TYPES.get(name, name if name in _TYPES.values() else "string")}


def _lower_types(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: value.lower() if key == "type" and isinstance(value, str) else _lower_types(value)
            for key, value in node.items()
        }
    return [_lower_types(child) for child in node] if isinstance(node, list) else node


def read_toolbench_tools(functions: Sequence[Any], field: str) -> tuple[ToolSchema, ...]:
    """Functions as ToolBench records them, bare or in OpenAI's form, as tool schemas.

    Raises UnusableError naming the field.
    """
    schemas: dict[str, ToolSchema] = {}
    for number, tool in enumerate(functions):
        where = f"{field}[{number}]"
        function = tool["function"] if isinstance(tool, dict) and "function" in tool else tool
        name = require_text(function, "name", where)
        parameters = require(function, "parameters", dict, where)
        properties = {
            key: _convert_toolbench_property(value)
            for key, value in require(parameters, "properties", dict, where).items()
        }
        required_names = require(parameters, "required", list, where) if parameters.get("required") else []
        required = [key for key in properties if key in required_names]
        if name != FINISH:
            name = make_distinct_name(name, schemas)
            schemas[name] = make_function_schema(name, str(function.get("description") or ""), properties, required)
    return check_and_add_finish(list(schemas.values()), field)


def _convert_toolbench_property(recorded: Any) -> dict[str, Any]:
    schema = dict(recorded) if isinstance(recorded, dict) else {}
    example = schema.pop("example_value", None)
    schema["type"] = convert_toolbench_type(schema.get("type"))
    return schema if example in ("", None) else {**schema, "examples": [example]}


def convert_toolbench_type(recorded: Any) -> str:
    """JSON Schema's type for a type as ToolBench writes it."""
    return _TYPES.get(str(recorded).lower(), "string")


def make_distinct_name(name: str, used_names: Mapping[str, Any] | set[str]) -> str:
    """The name, or where it is taken (long names can end alike) the name with a number in the same 64 characters."""
    number, candidate = 1, name
    while candidate in used_names:
        number += 1
        candidate = f"{name[: NAME_LIMIT - len(str(number)) - 1]}_{number}"
    return candidate


class ToolCatalog:
    """The tools of each environment, which is asked once. Tasks that name no environment have `data.environment`."""

    def __init__(self, config: Config) -> None:
        """Raises IngestError if no environment has the name `data.environment`."""
        self._default, self._config = get_default_environment(config), config
        self._tools = cache(self._list_tools)
        try:
            self.environment(self._default)
        except UnusableError as error:
            raise IngestError(f"data.environment: {error.detail}") from None

    def environment(self, name: str = "") -> str:
        """The name, or without one the default. Raises UnusableError if no environment has it."""
        environment_name = name or self._default
        if environment_name not in ENVIRONMENTS and (environment_name != self._default or ":" not in environment_name):
            raise UnusableError(
                "unknown environment", f"expected {list_expected_names(self._config)}, got '{environment_name}'"
            )
        return environment_name

    def tools(self, environment: str = "") -> tuple[ToolSchema, ...]:
        """The tools of an environment, and Finish.

        Raises UnusableError if it has no list of tools, and ConfigError if its settings are missing.
        """
        return self._tools(self.environment(environment))

    def add_hints(self, tools: Iterable[ToolSchema], environment: str) -> tuple[ToolSchema, ...]:
        """The tools that a task lists, with a hint on those of which the environment says that they only read."""
        read_only = find_environment_class(self.environment(environment), self._config).read_only
        return tuple(
            annotate_tool(tool, True) if tool["function"]["name"] in read_only and reads_only(tool) is None else tool
            for tool in tools
        )

    def _list_tools(self, name: str) -> tuple[ToolSchema, ...]:
        environment = open_environment(name, self._config)
        try:
            tools = environment.tools()
        except ValueError as error:
            raise UnusableError("missing field 'tools'", f"field 'tools' is missing, and {error}") from None
        finally:
            environment.close()
        return self.add_hints(check_and_add_finish(tools, f"environment '{name}'"), name)


def make_tool_schemas(api_list: Sequence[Any]) -> dict[tuple[str, str], ToolSchema]:
    """Tool schemas of an `api_list` by (tool name, API name), in its order. Raises UnusableError naming the field."""
    schemas: dict[tuple[str, str], ToolSchema] = {}
    names: set[str] = set()
    for number, api in enumerate(api_list):
        where = f"api_list[{number}]"
        key = (require_text(api, "tool_name", where), require_text(api, "api_name", where))
        if key not in schemas:
            name = make_distinct_name(make_function_name(key[1], key[0]), names)
            names.add(name)
            schemas[key] = _make_schema(name, api, where)
    return schemas


def _make_schema(name: str, api: Mapping[str, Any], where: str) -> ToolSchema:
    """The schema of an API. It is valid whatever the API holds."""
    required, optional = _make_properties(api, "required", where), _make_properties(api, "optional", where)
    properties = {**required, **{key: schema for key, schema in optional.items() if key not in required}}
    description = str(api.get("api_description") or "").strip()[:DESCRIPTION_LIMIT]
    return make_function_schema(
        name, description or f"{api['api_name']} ({api['tool_name']})", properties, list(required)
    )


def _make_properties(api: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """JSON Schema's properties for the parameters of a kind; of those with one name the first."""
    properties: dict[str, Any] = {}
    keyword = "examples" if kind == "required" else "default"
    for number, parameter in enumerate(require(api, f"{kind}_parameters", list, where)):
        name = parameter.get("name") if isinstance(parameter, dict) else None
        if not isinstance(name, str) or not name.strip():
            require_text(parameter, "name", f"{where}.{kind}_parameters[{number}]")  # says what is wrong
        key = standardise_parameter(name)
        if key not in properties:
            properties[key] = _make_property(parameter, keyword)
    return properties


def _make_property(parameter: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": convert_toolbench_type(parameter.get("type"))}
    if description := str(parameter.get("description") or "").strip()[:DESCRIPTION_LIMIT]:
        schema["description"] = description
    default = parameter.get("default")
    if default not in ("", None):
        schema[keyword] = [default] if keyword == "examples" else default
    return schema
