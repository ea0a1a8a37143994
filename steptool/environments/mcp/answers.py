"""Answers of MCP servers as text, and what is wrong with an answer that cannot be read."""

from __future__ import annotations

import json
import re
from typing import Any

from mcp import MCPError
from mcp.types import PARSE_ERROR, CallToolResult, EmbeddedResource, TextContent
from pydantic import ValidationError

MESSAGE = "a message of JSON-RPC 2.0 with `result` (an object) or `error` (an object with a code and a message)"
"""What every answer is."""
_FORMS = {
    "InitializeResult": "`protocolVersion` (a text) and the objects `serverInfo` and `capabilities`",
    "ListToolsResult": "`tools` (a list) and, where there are more, `nextCursor` (a text)",
    "Tool": "an object with `name` (a text) and `inputSchema` (an object)",
    "CallToolResult": '`content` (a list of blocks such as {"type": "text", "text": "..."}) and, where there is need, '
    "`structuredContent` (an object) and `isError` (true or false)",
}
"""What the protocol expects, by the class in which the library reads it."""
_CHARACTERS = 200
"""Characters of a value that are shown."""
_LIBRARY_SAYS = re.compile(r"^Failed to parse \w+ \w+: ")
_INPUT = re.compile(r"input_value=(.*), input_type=")


def describe_cause(error: BaseException) -> str:
    """The first cause of an error, whole, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return describe_unreadable(error) or " ".join(str(error).split()) or type(error).__name__


def describe_unreadable(error: BaseException) -> str:
    """Why an answer cannot be read: what was expected and what came. Empty for an error of another kind."""
    if isinstance(error, ValidationError):
        return _describe_fault(error)
    if not isinstance(error, MCPError) or error.code != PARSE_ERROR:
        return ""
    text = _LIBRARY_SAYS.sub("", error.message)
    value = _INPUT.search(text)  # the library keeps of pydantic's error its text alone
    return f"expected {MESSAGE}, got {value[1]}" if value else text


def describe_form(expected: str, value: Any, place: str = "") -> str:
    """What was expected and what came, as JSON and cut."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    shown = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
    return f"expected {expected}, got {shown}{f' as `{place}`' if place else ''}"


def _describe_fault(error: ValidationError) -> str:
    """The outermost fault of an answer. A block of no known kind has a fault for each kind, and is shown whole."""
    faults = error.errors(include_url=False, include_context=False)
    fault = min(faults, key=lambda fault: (len(fault["loc"]), fault["type"] != "missing"))
    path = fault["loc"][:-1] if fault["type"] == "missing" else fault["loc"]
    numbers = [place for place, part in enumerate(path) if isinstance(part, int)]
    path = path[: numbers[0] + 1] if numbers else path
    return describe_form(_FORMS.get(error.title, error.title), fault["input"], ".".join(map(str, path)))


def write_answer_text(result: CallToolResult) -> str:
    """The blocks of an answer, each on a line of its own, or its structured content if it has no blocks."""
    if not result.content and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(map(_read_block, result.content))


def _read_block(block: Any) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, EmbeddedResource):
        text: str | None = getattr(block.resource, "text", None)
        return f"[resource {block.resource.uri}]" if text is None else text
    about = getattr(block, "uri", None) or block.mime_type
    return f"[{block.type} {about}]"
