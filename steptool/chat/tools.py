"""What a tool's schema says beside the text that a model reads: whether the tool only reads."""

from __future__ import annotations

from collections.abc import Iterable

from steptool.records import ToolSchema

ANNOTATIONS = "annotations"
"""Field of a schema's "function" with MCP's hints, such as {"readOnlyHint": true}. Models do not see it."""
READ_ONLY_HINT = "readOnlyHint"
READ_ONLY_FIELD = "x-read-only"
"""Field of a schema's "function" that says the same where a task lists its tools itself."""


def reads_only(tool: ToolSchema) -> bool | None:
    """Whether a call of the tool changes nothing; None where its schema does not say."""
    function = tool["function"]
    annotations = function.get(ANNOTATIONS)
    hint = annotations.get(READ_ONLY_HINT) if isinstance(annotations, dict) else None
    hint = function.get(READ_ONLY_FIELD, hint)
    return hint if isinstance(hint, bool) else None


def annotate_tool(tool: ToolSchema, read_only: bool | None) -> ToolSchema:
    """The schema with a hint whether the tool only reads; the schema as it is for None."""
    if read_only is None:
        return tool
    return {**tool, "function": {**tool["function"], ANNOTATIONS: {READ_ONLY_HINT: read_only}}}


def model_schemas(tools: Iterable[ToolSchema]) -> list[ToolSchema]:
    """The schemas as a model sees them: without hints, which would cost tokens and which some endpoints refuse."""
    return [_without_hints(tool) for tool in tools]


def _without_hints(tool: ToolSchema) -> ToolSchema:
    function = tool["function"]
    if ANNOTATIONS not in function and READ_ONLY_FIELD not in function:
        return tool
    kept = {key: value for key, value in function.items() if key not in (ANNOTATIONS, READ_ONLY_FIELD)}
    return {**tool, "function": kept}
