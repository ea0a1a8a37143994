"""The sources that come with StepTool, each a class that a configuration names.

They read own tasks, those of an environment, instruction files of ToolBench, the embedded world, the installed package
bfcl-eval, and recorded trajectories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from steptool.config.base import did_you_mean
from steptool.data.files import SUFFIXES, content_stem, parse_records, read_file
from steptool.data.parsing import IngestError, Record, UnusableError, excerpt, optional, require, require_text
from steptool.data.recordings.forms import read_recordings
from steptool.data.recordings.recording import Recording
from steptool.data.sources.base import Source, SourceInputs
from steptool.data.splits import SPLITS
from steptool.data.tools import (
    ToolCatalog,
    check_and_close,
    distinct_name,
    function_schema,
    toolbench_type,
    with_finish,
)
from steptool.environments.base import open_environment
from steptool.environments.bfcl_tasks import bfcl_queries
from steptool.environments.desk.tasks import desk_demonstrations, desk_queries
from steptool.environments.toolbench import REFERENCE, endpoint, function_name, parameter_name
from steptool.records import Query, Reference, ToolSchema, Trajectory

_FIELDS = ("instruction", "tools", "environment", "id", "split", "reference", "tier", "max_steps")

_MOST_STEPS = 2**31 - 1
"""The largest number that the column of queries holds."""


class OwnTasksSource(Source):
    """Tasks of the user's own, in JSONL files.

    A task without a split is drawn one later; a task without tools has those of its environment. The first task that is
    not well formed ends the reading: users mend their own tasks.
    """

    suffixes = (".jsonl",)

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks. Raises IngestError naming the file, the line and the field of one that is not well formed."""
        places: dict[str, tuple[Path, int | str | None]] = {}
        for file in inputs.files(self.suffixes):
            for record in read_file(file):
                query, place = _read_query(record, inputs.catalog), (record.file, record.row)
                if query.query_id and places.setdefault(query.query_id, place) != place:
                    first, line = places[query.query_id]
                    detail = f"'{query.query_id}' is also the id of {first}, line {line}"
                    raise IngestError(f"{_describe_place(record)}: field 'id': {detail}")
                yield query if query.query_id else replace(query, query_id=f"{content_stem(file)}-{record.row}")


class EnvironmentSource(Source):
    """The tasks that the environment `data.environment` itself lists, such as those of a taskset or of a server."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks. Raises IngestError for an environment without tasks, and for one that is not well formed."""
        name = inputs.catalog.environment()
        with closing(open_environment(name, inputs.config)) as environment:
            try:
                for number, task in enumerate(environment.tasks()):
                    query = _parse(dict(task), inputs.catalog)
                    yield replace(query, query_id=query.query_id or f"task-{number}", source=name)
            except UnusableError as error:
                raise IngestError(f"task {number} of the environment '{name}': {error.detail}") from None
            except ValueError as error:
                raise IngestError(f"data.source: {error}") from error


def _describe_place(record: Record) -> str:
    return f"{record.file}" if record.row is None else f"{record.file}, line {record.row}"


def _read_query(record: Record, catalog: ToolCatalog) -> Query:
    if record.fault:
        raise IngestError(f"{_describe_place(record)}: {record.fault}")
    try:
        return _parse(record.value, catalog)
    except UnusableError as error:
        raise IngestError(f"{_describe_place(record)}: {error.detail}") from None


def _parse(task: Any, catalog: ToolCatalog) -> Query:
    instruction = require_text(task, "instruction")
    if unknown := [name for name in task if name not in _FIELDS]:
        closest = did_you_mean(unknown[0], _FIELDS)
        raise UnusableError("unknown field", f"unknown field '{unknown[0]}'; known are {', '.join(_FIELDS)}{closest}")
    environment = _read_environment(optional(task, "environment", str, ""), catalog)
    if "tools" in task:
        tools = catalog.add_hints(check_and_close(require(task, "tools", list), "tools"), environment)
    else:
        tools = catalog.tools(environment)
    split = optional(task, "split", str, "")
    if split and split not in SPLITS:
        raise UnusableError(
            "unknown split", f"field 'split': expected one of {', '.join(SPLITS)}, got {excerpt(split)}"
        )
    max_steps = optional(task, "max_steps", int, 0)
    if isinstance(max_steps, bool) or not 0 <= max_steps <= _MOST_STEPS:
        expected = f"expected a number of steps from 0 to {_MOST_STEPS}"
        raise UnusableError("ill-typed field", f"field 'max_steps': {expected}, got {excerpt(max_steps)}")
    return Query(
        query_id=optional(task, "id", str, ""),
        split=split,
        environment=environment,
        instruction=instruction,
        tools=tools,
        reference=_read_reference(optional(task, "reference", dict, {}), [t["function"]["name"] for t in tools]),
        source="jsonl",
        tier=optional(task, "tier", str, ""),
        max_steps=max_steps,
    )


def _read_environment(name: str, catalog: ToolCatalog) -> str:
    try:
        return catalog.environment(name)
    except UnusableError as error:
        raise UnusableError(error.reason, f"field 'environment': {error.detail}") from None


def _read_call_names(fields: dict[str, Any], field: str, where: str) -> list[str]:
    """The names of the calls in a list, each with its arguments."""
    names = []
    for number, call in enumerate(optional(fields, field, list, [], where)):
        names.append(require_text(call, "name", f"{where}.{field}[{number}]"))
        require(call, "arguments", dict, f"{where}.{field}[{number}]")
    return names


def _read_reference(reference: dict[str, Any], tool_names: Sequence[str]) -> Reference:
    optional(reference, "answer", str, "")
    optional(reference, "family", str, "")
    mentioned = [*optional(reference, "tools", list, []), *_read_call_names(reference, "calls", "reference")]
    for number, turn in enumerate(optional(reference, "turns", list, [])):
        mentioned += _read_call_names({"turn": turn}, "turn", f"reference.turns[{number}]")
    for name in mentioned:
        if name not in tool_names:
            closest = did_you_mean(str(name), tool_names)
            raise UnusableError(
                "unknown tool", f"field 'reference': {excerpt(name)} is not among the task's tools{closest}"
            )
    return Reference.from_json(reference)


DESCRIPTION_LIMIT = 256
"""Characters of a description that ToolBench shows to the model."""


class ToolBenchSource(Source):
    """Instruction files: JSON lists of tasks. Tasks that cannot be used are set aside."""

    suffixes = (".json",)
    may_leave_out_long_prompts = True

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks of the files, for the environment of the configuration."""
        for query in parse_records(inputs.files(self.suffixes), _read_instruction, "queries", inputs.log):
            yield replace(query, environment=inputs.catalog.environment())


def _read_instruction(record: Record) -> Query:
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
    """What a request names for each function; functions of an API without a category are left out."""
    endpoints: dict[str, list[str]] = {}
    for api in api_list:
        key, category = (api["tool_name"], api["api_name"]), api.get("category_name")
        if isinstance(category, str):
            endpoints.setdefault(schemas[key]["function"]["name"], list(endpoint(category, *key)))
    return endpoints


def _make_schema(name: str, api: Mapping[str, Any], where: str) -> ToolSchema:
    """The schema of an API. It is valid whatever the API holds."""
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


class BfclSource(Source):
    """BFCL's tasks with their reference solutions."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks, in the order of the package."""
        return iter(bfcl_queries())


class DeskSource(Source):
    """As many tasks of each split as the configuration names."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks of all splits."""
        return iter(desk_queries(inputs.config))

    def make_demonstrations(self, queries: Iterable[Query], inputs: SourceInputs) -> Iterator[Trajectory]:
        """The expert's attempts at training tasks, as many as the warm start takes."""
        demonstrations = desk_demonstrations(inputs.config, list(queries))
        for name in ("demonstrations read", "demonstrations kept"):
            inputs.log.count(name, len(demonstrations))
        return iter(demonstrations)


class RecordedSource(Source):
    """Recordings of any form, each of which brings its own task."""

    suffixes = SUFFIXES
    may_leave_out_long_prompts = True

    def read_recordings(self, inputs: SourceInputs) -> Iterator[Recording]:
        """The recordings of `data.paths`."""
        return read_recordings(inputs.config.data.paths, "data.paths", inputs.catalog.tools, inputs.log)
