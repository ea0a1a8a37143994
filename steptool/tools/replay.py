"""An environment without live tools: it answers with the responses that were recorded for the same calls."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from steptool.tools.environment import Environment, Session, ToolResult
from steptool.tools.schema import check_arguments
from steptool.trajectory import Query, StepStatus, ToolCall, Trajectory

_ANSWERED = (StepStatus.OK, StepStatus.TOOL_ERROR)
Key = tuple[str, str]


def protocol_error(message: str) -> str:
    """ToolBench's form of a failure."""
    return json.dumps({"error": message, "response": ""}, ensure_ascii=False)


def call_key(call: ToolCall) -> Key:
    """Tool name and arguments as canonical JSON: the same whatever the order of the arguments."""
    arguments = json.dumps(dict(call.arguments), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return call.name, arguments


class ReplayEnvironment(Environment):
    """Replays recorded responses. Where a call has several, the most frequent one, and of those the first recorded."""

    name = "replay"

    def __init__(self, demonstrations: Iterable[Trajectory]) -> None:
        recorded: defaultdict[Key, Counter[ToolResult]] = defaultdict(Counter)
        for trajectory in demonstrations:
            for step in trajectory.steps:
                if step.call and step.status in _ANSWERED:
                    recorded[call_key(step.call)][ToolResult(step.status, step.observation)] += 1
        # most_common() keeps the order of first insertion among equals
        self._responses: Mapping[Key, ToolResult] = {key: c.most_common(1)[0][0] for key, c in recorded.items()}

    def reset(self, query: Query) -> ReplaySession:
        """A session for the query."""
        return ReplaySession(self._responses, query)


class ReplaySession(Session):
    """One run of one query. It has no state: the same call always gets the same response."""

    def __init__(self, responses: Mapping[Key, ToolResult], query: Query) -> None:
        self._responses = responses
        self._parameters: dict[str, Mapping[str, Any]] = {
            t["function"]["name"]: t["function"]["parameters"] for t in query.tools
        }

    def call(self, call: ToolCall) -> ToolResult:
        """The recorded response; else an error: no such tool, arguments that break its schema, or never recorded.

        What was recorded stands even where the arguments break the schema: the real tool took them.
        """
        if call.name not in self._parameters:
            return ToolResult(StepStatus.UNKNOWN_TOOL, protocol_error(f"No such function name: {call.name}"))
        if (recorded := self._responses.get(call_key(call))) is not None:
            return recorded
        if problem := check_arguments(self._parameters[call.name], call.arguments):
            return ToolResult(StepStatus.INVALID_ARGUMENTS, protocol_error(f"Invalid arguments: {problem}"))
        return ToolResult(StepStatus.TOOL_ERROR, protocol_error("No response is recorded for this call."))

    def solved(self, final_answer: str | None) -> float | None:
        """Recordings give no verdict: always None."""
        return None
