"""Arguments that a format writes as bare text, such as <parameter=id>7</parameter>. The schema gives their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steptool.chat.calls import read_json, write_json
from steptool.records import ToolCall, ToolSchema

_PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""Chat templates that print a value with Jinja's `string` write these words of Python."""


def write_value(value: Any) -> str:
    """A value as bare text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else write_json(value)


def read_arguments(call: ToolCall, tools: Sequence[ToolSchema]) -> dict[str, Any]:
    """The arguments of a call whose values are bare text, with the types that the tool's schema declares."""
    functions = (tool["function"] for tool in tools)
    parameters = next((f.get("parameters") for f in functions if f.get("name") == call.name), None)
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    schemas = properties if isinstance(properties, Mapping) else {}
    return {name: _read_value(text, schemas.get(name)) for name, text in call.arguments.items()}


def _read_value(text: str, schema: Any) -> Any:
    """A value from its text. What cannot be read as the declared type stays text, and fails the schema later."""
    types = set(_types(schema))
    if types == {"string"}:
        return text
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        value = read_json(text)
    except ValueError:
        return text
    # Without a declared type, or with several, a JSON string in quotation marks is text that holds them.
    return text if isinstance(value, str) and (not types or "string" in types) else value


def _types(schema: Any) -> Iterator[str]:
    """The JSON types that a schema allows, as far as it names them; none where it does not."""
    if not isinstance(schema, Mapping):
        return
    declared = schema.get("type")
    yield from [declared] if isinstance(declared, str) else declared if isinstance(declared, list) else []
    if "type" not in schema and isinstance(schema.get("enum"), list):
        yield from {"string" if isinstance(value, str) else "other" for value in schema["enum"]}
    for word in ("anyOf", "oneOf"):
        for part in schema.get(word) or [] if isinstance(schema.get(word), list) else []:
            yield from _types(part)
