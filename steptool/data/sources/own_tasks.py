"""Own tasks, one JSON object a line: {"instruction"} and "tools" or "environment", and what else is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steptool.config.base import did_you_mean
from steptool.data.ingest_log import IngestError, Record, UnusableError
from steptool.data.parsing import excerpt, optional, require, require_text
from steptool.data.readers.files import read_file
from steptool.data.readers.text import content_stem
from steptool.data.sources.base import Source, SourceInputs
from steptool.data.splits import SPLITS
from steptool.data.tools import ToolCatalog, check_and_close
from steptool.records import Query, Reference

_FIELDS = ("instruction", "tools", "environment", "id", "split", "reference", "tier", "max_steps")

_MOST_STEPS = 2**31 - 1
"""What the column of queries holds."""


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
    tools = check_and_close(require(task, "tools", list), "tools") if "tools" in task else catalog.tools(environment)
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
                "unknown tool", f"field 'reference': {excerpt(name)} is none of the task's tools{closest}"
            )
    return Reference.from_json(reference)
