"""The text of the protocol, {"error": ..., "response": ...}, and the status of the call that it stands for."""

from __future__ import annotations

import json
import re
from typing import Any

from steptool.records import StepStatus

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
    ours = error in (NEVER_RECORDED, TIMEOUT) or error.startswith(BAD_REPLY)
    return "response" in document and not ours


def _document(observation: str) -> dict[str, Any]:
    try:
        document = json.loads(observation)
    except (ValueError, RecursionError):
        cut = _ERROR_FIELD.match(observation)
        document = {"error": cut.group(1) if cut else "", "response": observation}
    return document if isinstance(document, dict) else {"response": document}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
