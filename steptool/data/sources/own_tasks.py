"""Own tasks, one JSON object a line: {"instruction"} and "tools" or "environment", and what else is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steptool.data.intake import IngestError, IngestLog, Record, UnusableError, field, shown, text_field
from steptool.data.readers import files, records
from steptool.data.sources.toolbench import checked
from steptool.data.splits import SPLITS
from steptool.data.tool_catalog import ToolCatalog
from steptool.records import Query

_FIELDS = ("instruction", "tools", "environment", "id", "split", "reference", "tier", "max_steps")


def read_tasks(paths: Sequence[str], offers: ToolCatalog, ledger: IngestLog) -> Iterator[Query]:
    """Queries of JSONL files. A task without a split has the split "", one without tools those of its environment.

    Raises IngestError naming the file, the line and the field of the first task that is not well formed: tasks of one's
    own are mended, not left out.
    """
    ids: dict[str, tuple[Path, int | str | None]] = {}
    for file in files(paths, "data.paths", (".jsonl",)):
        for record in records(file):
            query, place = _query(record, offers), (record.file, record.row)
            if query.query_id and ids.setdefault(query.query_id, place) != place:
                first, line = ids[query.query_id]
                raise IngestError(
                    f"{_where(record)}: field 'id': '{query.query_id}' is also the id of {first}, line {line}"
                )
            ledger.count("queries read")
            yield query if query.query_id else replace(query, query_id=f"{file.stem}-{record.row}")


def _where(record: Record) -> str:
    return f"{record.file}" if record.row is None else f"{record.file}, line {record.row}"


def _query(record: Record, offers: ToolCatalog) -> Query:
    if record.fault:
        raise IngestError(f"{_where(record)}: {record.fault}")
    try:
        return _checked(record.value, offers)
    except UnusableError as error:
        raise IngestError(f"{_where(record)}: {error.detail}") from None


def _checked(task: Any, offers: ToolCatalog) -> Query:
    instruction = text_field(task, "instruction")
    if unknown := [name for name in task if name not in _FIELDS]:
        raise UnusableError("unknown field", f"unknown field '{unknown[0]}'; known are {', '.join(_FIELDS)}")
    environment = _environment(_optional(task, "environment", str, ""), offers)
    tools = checked(field(task, "tools", list), "tools") if "tools" in task else offers.tools(environment)
    split = _optional(task, "split", str, "")
    if split and split not in SPLITS:
        raise UnusableError("unknown split", f"field 'split': expected one of {', '.join(SPLITS)}, got {shown(split)}")
    max_steps = _optional(task, "max_steps", int, 0)
    if isinstance(max_steps, bool) or max_steps < 0:
        raise UnusableError("ill-typed field", f"field 'max_steps': expected a number of steps, got {shown(max_steps)}")
    return Query(
        query_id=_optional(task, "id", str, ""),
        split=split,
        environment=environment,
        instruction=instruction,
        tools=tools,
        reference=_reference(_optional(task, "reference", dict, {}), [t["function"]["name"] for t in tools]),
        source="jsonl",
        tier=_optional(task, "tier", str, ""),
        max_steps=max_steps,
    )


def _environment(name: str, offers: ToolCatalog) -> str:
    try:
        return offers.environment(name)
    except UnusableError as error:
        raise UnusableError(error.reason, f"field 'environment': {error.detail}") from None


def _optional(task: Any, name: str, kind: type, default: Any) -> Any:
    return field(task, name, kind) if name in task else default


def _reference(reference: dict[str, Any], offered: Sequence[str]) -> dict[str, Any]:
    _optional(reference, "answer", str, "")
    named = list(_optional(reference, "tools", list, []))
    for number, call in enumerate(_optional(reference, "calls", list, [])):
        where = f"reference.calls[{number}]"
        named.append(text_field(call, "name", where))
        field(call, "arguments", dict, where)
    for name in named:
        if name not in offered:
            raise UnusableError("unknown tool", f"field 'reference': {shown(name)} is none of the task's tools")
    return reference
