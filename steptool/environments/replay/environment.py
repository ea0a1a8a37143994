"""An environment without live tools, which answers calls with the responses that were recorded for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from steptool.config import ToolsConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.replay.responses import Responses, call_key
from steptool.environments.schema import check_arguments
from steptool.environments.toolbench.protocol import NEVER_RECORDED, protocol_error, unknown_function
from steptool.records import Query, StepStatus, ToolCall, Trajectory


class ReplayEnvironment(Environment):
    """Answers each call with the response that was recorded for it."""

    name = "replay"
    needs_recordings = True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """An environment that answers as the recordings do."""
        return cls(recordings)

    def __init__(self, recordings: Iterable[Trajectory]) -> None:
        self._responses = Responses()
        answered = (pair for t in recordings for pair in answered_calls(t))
        self._responses.add((call_key([call.name], call.arguments), result) for call, result in answered)

    def reset(self, query: Query) -> ReplaySession:
        """A session for the query."""
        return ReplaySession(query, self._lookup)

    def _lookup(self, call: ToolCall) -> ToolResult | None:
        return self._responses.get(call_key([call.name], call.arguments))

    def close(self) -> None:
        """Forget the responses."""
        self._responses.close()


def answered_calls(trajectory: Trajectory) -> Iterator[tuple[ToolCall, ToolResult]]:
    """The calls of a trajectory that a tool answered, with their results."""
    for step in trajectory.steps:
        if step.call and step.status in (StepStatus.OK, StepStatus.TOOL_ERROR):
            yield step.call, ToolResult(step.status, step.observation)


def fail_unrecorded(_: ToolCall) -> ToolResult:
    """The answer to a call that was never recorded."""
    return ToolResult(StepStatus.TOOL_ERROR, protocol_error(NEVER_RECORDED))


class ReplaySession(Session):
    """One episode of one query. It has no state: the same call always gets the same response.

    `lookup` returns the recorded response of a call, or None. `fallback` answers a call that is not recorded, if its
    tool is offered and its arguments fit the schema.
    """

    def __init__(
        self,
        query: Query,
        lookup: Callable[[ToolCall], ToolResult | None],
        fallback: Callable[[ToolCall], ToolResult] = fail_unrecorded,
    ) -> None:
        self._lookup, self._fallback = lookup, fallback
        self._parameters: dict[str, Mapping[str, Any]] = {
            t["function"]["name"]: t["function"]["parameters"] for t in query.tools
        }

    def call(self, call: ToolCall) -> ToolResult:
        """The recorded response, or an error: no such tool, arguments that break its schema, or not recorded.

        A recorded response counts even where the arguments break the schema, since the real tool accepted them.
        """
        if call.name not in self._parameters:
            return ToolResult(StepStatus.UNKNOWN_TOOL, unknown_function(call.name))
        if (response := self._lookup(call)) is not None:
            return response
        if problem := check_arguments(self._parameters[call.name], call.arguments):
            return ToolResult(StepStatus.INVALID_ARGUMENTS, protocol_error(f"Invalid arguments: {problem}"))
        return self._fallback(call)
