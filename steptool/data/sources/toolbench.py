"""Instruction files of ToolBench and StableToolBench: a query with its `api_list` becomes a Query with tool schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steptool.data.ingest_log import Record, UnusableError
from steptool.data.parsing import excerpt, optional, require, require_text
from steptool.data.readers.files import parse_records
from steptool.data.readers.text import content_stem
from steptool.data.sources.base import Source, SourceInputs
from steptool.data.tools import distinct_name, function_schema, toolbench_type, with_finish
from steptool.environments.toolbench.protocol import REFERENCE, endpoint, function_name, parameter_name
from steptool.records import Query, Reference, ToolSchema

DESCRIPTION_LIMIT = 256
"""Characters of a description that ToolBench shows to the model."""


class ToolBenchSource(Source):
    """Instruction files: JSON lists of tasks. Tasks that cannot be used are set aside."""

    suffixes = (".json",)
    may_leave_out_long_prompts = True

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks of the files, for the environment of the configuration."""
        for query in parse_records(inputs.files(self.suffixes), _read_query, "queries", inputs.log):
            yield replace(query, environment=inputs.catalog.environment())


def _read_query(record: Record) -> Query:
    if record.row is None:
        raise UnusableError("not a list of instructions", f"expected a list, got {excerpt(record.value)}")
    return read_instruction(record.value, record.file, record.row)


def read_instruction(record: Any, file: Path, row: int | str | None) -> Query:
    """A record of an instruction file as a query, without a split. Raises UnusableError naming the field."""
    instruction = require_text(record, "query")
    schemas = make_tool_schemas(require(record, "api_list", list))
    relevant = optional(record, "relevant APIs", list, [])
    return Query(
        query_id=f"{content_stem(file)}-{record.get('query_id', row)}",
        split="",
        environment="replay",
        instruction=instruction,
        tools=with_finish(list(schemas.values())),
        reference=Reference(
            tools=tuple(schema["function"]["name"] for key, schema in schemas.items() if list(key) in relevant),
            environment={REFERENCE: _find_endpoints(record["api_list"], schemas)},
        ),
        source="toolbench",
        tier=content_stem(file),
    )


def make_tool_schemas(api_list: Sequence[Any]) -> dict[tuple[str, str], ToolSchema]:
    """Tool schemas of an `api_list` by (tool name, API name), in its order. Raises UnusableError naming the field."""
    schemas: dict[tuple[str, str], ToolSchema] = {}
    names: set[str] = set()
    for number, api in enumerate(api_list):
        where = f"api_list[{number}]"
        key = (require_text(api, "tool_name", where), require_text(api, "api_name", where))
        if key not in schemas:
            name = distinct_name(function_name(key[1], key[0]), names)
            names.add(name)
            schemas[key] = _make_schema(name, api, where)
    return schemas


def _find_endpoints(api_list: Sequence[Any], schemas: Mapping[tuple[str, str], ToolSchema]) -> dict[str, list[str]]:
    """What a request names for each function; not for one of an API without a category."""
    endpoints: dict[str, list[str]] = {}
    for api in api_list:
        key, category = (api["tool_name"], api["api_name"]), api.get("category_name")
        if isinstance(category, str):
            endpoints.setdefault(schemas[key]["function"]["name"], list(endpoint(category, *key)))
    return endpoints


def _make_schema(name: str, api: Mapping[str, Any], where: str) -> ToolSchema:
    """The schema of an API; whatever the API holds, it is one."""
    required, others = _make_properties(api, "required", where), _make_properties(api, "optional", where)
    properties = {**required, **{key: schema for key, schema in others.items() if key not in required}}
    description = str(api.get("api_description") or "").strip()[:DESCRIPTION_LIMIT]
    return function_schema(name, description or f"{api['api_name']} ({api['tool_name']})", properties, list(required))


def _make_properties(api: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """JSON Schema's properties for the parameters of a kind; of those with one name the first."""
    properties: dict[str, Any] = {}
    keyword = "examples" if kind == "required" else "default"
    for number, parameter in enumerate(require(api, f"{kind}_parameters", list, where)):
        name = parameter.get("name") if isinstance(parameter, dict) else None
        if not isinstance(name, str) or not name.strip():
            require_text(parameter, "name", f"{where}.{kind}_parameters[{number}]")  # says what is wrong
        key = parameter_name(name)
        if key not in properties:
            properties[key] = _make_property(parameter, keyword)
    return properties


def _make_property(parameter: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": toolbench_type(parameter.get("type"))}
    if description := str(parameter.get("description") or "").strip()[:DESCRIPTION_LIMIT]:
        schema["description"] = description
    default = parameter.get("default")
    if default not in ("", None):
        schema[keyword] = [default] if keyword == "examples" else default
    return schema
