"""The `/virtual` protocol: names of APIs and functions, and the text of an answer with the status that it
stands for.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from steptool.records import Query, StepStatus

NAME_LIMIT = 64
REFERENCE = "toolbench"
"""Key of `Query.reference.environment` that names the API of each function: {function name: [category, tool name, API
name]}."""
Endpoint = tuple[str, str, str]
"""Category, tool name and API name, as a request writes them."""
_RESERVED = frozenset({"from", "class", "return", "false", "true", "id", "and"})


@lru_cache(1 << 16)
def standard_name(text: str) -> str:
    """A tool's, API's or parameter's name as ToolBench writes it: lower case, one `_` for each run of other characters.

    Chinese characters and `^` are kept, as in ToolBench's own rule.
    """
    name = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9^\u4e00-\u9fa5]", "_", text)).lower().strip("_")
    return f"get_{name}" if name[:1].isdigit() else name


def avoid_reserved(name: str) -> str:
    """The name, with `is_` before it if ToolBench reserves it, such as `id` and `from`."""
    return f"is_{name}" if name in _RESERVED else name


@lru_cache(1 << 16)
def parameter_name(name: str) -> str:
    """A parameter's name in standard form, or unchanged if its standard form is empty."""
    return avoid_reserved(standard_name(name)) or name


@lru_cache(1 << 16)
def function_name(api_name: str, tool_name: str) -> str:
    """Name of the function for an API of a tool: the last 64 characters of `<api>_for_<tool>`."""
    name = f"{avoid_reserved(standard_name(api_name))}_for_{standard_name(tool_name)}"
    return re.sub(r"[^a-z0-9_]", "_", name)[-NAME_LIMIT:]


def endpoint(category: str, tool_name: str, api_name: str) -> Endpoint:
    """The names in a request of ToolBench's client: the category unchanged, tool and API in standard form."""
    return category, standard_name(tool_name), avoid_reserved(standard_name(api_name))


def endpoints(query: Query) -> dict[str, Endpoint]:
    """The endpoint of each function of the query; empty where the query does not name them.

    It cannot be derived from the name: `_for_` may be part of a tool's name, long names are cut, and no name has the
    category. Raises ValueError if the query's reference is of another form.
    """
    return {
        name: _endpoint(query.query_id, name, parts)
        for name, parts in query.reference.environment.get(REFERENCE, {}).items()
    }


def _endpoint(query_id: str, name: str, parts: Any) -> Endpoint:
    match parts:
        case [str(category), str(tool_name), str(api_name)]:
            return category, tool_name, api_name
    raise ValueError(
        f"query {query_id}: reference.{REFERENCE}.{name}: expected [category, tool name, API name], got {parts!r}"
    )


NEVER_RECORDED = "No response is recorded for this call."
TIMEOUT = "Timeout error..."
BAD_REPLY = "request invalid, data error"
"""ToolBench's own client gives the last two in place of a server's answer."""
_UNKNOWN = "No such function name"
_UNREADABLE = "Tool input parse error"
_ERROR_FIELD = re.compile(r'\s*\{\s*"error"\s*:\s*"((?:[^"\\]|\\.)*)')
_FAILURE = re.compile(
    r"""["']?status(?:_?code)?["']?\s*:\s*["']?[45]\d\d\b|unauthori[sz]ed|authentication (?:failed|required|error)"""
    r"|not subscribed|too many requests|rate limit|quota|timed? ?out|internal server error|bad gateway|page not found",
    re.IGNORECASE,
)
_LONGEST_FAILURE = 400
"""Characters. A longer response is content, whatever words it contains."""


def protocol_error(message: str) -> str:
    """The protocol's text of a failure."""
    return json.dumps({"error": message, "response": ""}, ensure_ascii=False)


def unknown_function(name: str) -> str:
    """The protocol's text for a function that was not offered."""
    return protocol_error(f"{_UNKNOWN}: {name}")


def observation_status(observation: str) -> StepStatus:
    """The status of a call, read from the protocol's text, which may be cut off.

    A non-empty `error` is a failure. So is a short response with an HTTP error status or the words of one.
    """
    document = _document(observation)
    error = _text(document.get("error"))
    if error.startswith(_UNKNOWN):
        return StepStatus.UNKNOWN_TOOL
    if error.startswith(_UNREADABLE):
        return StepStatus.INVALID_ARGUMENTS
    response = _text(document.get("response", document))
    failed = error or (len(response) <= _LONGEST_FAILURE and _FAILURE.search(response))
    return StepStatus.TOOL_ERROR if failed else StepStatus.OK


def from_server(observation: str) -> bool:
    """Whether the text comes from a server, and not from a client, a limit or a replay in its place."""
    document = _document(observation)
    error = _text(document.get("error"))
    is_own_error = error in (NEVER_RECORDED, TIMEOUT) or error.startswith(BAD_REPLY)
    return "response" in document and not is_own_error


def _document(observation: str) -> dict[str, Any]:
    try:
        document = json.loads(observation)
    except (ValueError, RecursionError):
        match = _ERROR_FIELD.match(observation)
        document = {"error": match.group(1) if match else "", "response": observation}
    return document if isinstance(document, dict) else {"response": document}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
