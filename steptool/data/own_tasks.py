"""Own tasks, one JSON object a line: {"instruction", "tools"} and optionally id, split, reference, tier, max_steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from steptool.data.intake import (
    IngestError,
    Ledger,
    UnusableError,
    field,
    files,
    parse_json,
    read_text,
    shown,
    text_field,
)
from steptool.data.splits import SPLITS
from steptool.data.toolbench import with_finish
from steptool.tools.schema import check_tools
from steptool.trajectory import Query

_FIELDS = ("instruction", "tools", "id", "split", "reference", "tier", "max_steps")


def read_tasks(paths: Sequence[str], ledger: Ledger) -> list[Query]:
    """Queries of JSONL files. A task without a split has the split "".

    Raises IngestError naming the file, the line and the field of the first task that is not well formed.
    """
    queries: list[Query] = []
    ids: dict[str, str] = {}
    for file in files(paths, "data.paths", ".jsonl"):
        try:
            lines = read_text(file).split("\n")
        except UnusableError as error:
            raise IngestError(f"{file}: {error}") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}, line {number}"
                query = _query(line, where)
                if query.query_id and ids.setdefault(query.query_id, where) != where:
                    raise IngestError(
                        f"{where}: field 'id': '{query.query_id}' is also the id of {ids[query.query_id]}"
                    )
                queries.append(query if query.query_id else replace(query, query_id=f"{file.stem}-{number}"))
                ledger.count("queries read")
    return queries


def _query(line: str, where: str) -> Query:
    try:
        return _checked(parse_json(line), where)
    except UnusableError as error:
        raise IngestError(f"{where}: {error.detail}") from None
    except ValueError as error:  # a tool schema that is none; the message names the place
        raise IngestError(str(error)) from None


def _checked(task: Any, where: str) -> Query:
    instruction = text_field(task, "instruction")
    if unknown := [name for name in task if name not in _FIELDS]:
        raise UnusableError("unknown field", f"unknown field '{unknown[0]}'; known are {', '.join(_FIELDS)}")
    tools = field(task, "tools", list)
    check_tools(tools, where)
    split = _optional(task, "split", str, "")
    if split and split not in SPLITS:
        raise UnusableError("unknown split", f"field 'split': expected one of {', '.join(SPLITS)}, got {shown(split)}")
    max_steps = _optional(task, "max_steps", int, 0)
    if isinstance(max_steps, bool) or max_steps < 0:
        raise UnusableError("ill-typed field", f"field 'max_steps': expected a number of steps, got {shown(max_steps)}")
    offered = with_finish(tools)
    return Query(
        query_id=_optional(task, "id", str, ""),
        split=split,
        environment="replay",
        instruction=instruction,
        tools=offered,
        reference=_reference(_optional(task, "reference", dict, {}), [t["function"]["name"] for t in offered]),
        source="jsonl",
        tier=_optional(task, "tier", str, ""),
        max_steps=max_steps,
    )


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
