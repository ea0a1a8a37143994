"""An environment without live tools: it answers with the responses that were recorded for the same calls."""

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
        return ReplaySession(query, self._recorded)

    def _recorded(self, call: ToolCall) -> ToolResult | None:
        return self._responses.get(call_key([call.name], call.arguments))

    def close(self) -> None:
        """Forget the responses."""
        self._responses.close()


def answered_calls(trajectory: Trajectory) -> Iterator[tuple[ToolCall, ToolResult]]:
    """The calls of a trajectory that a tool answered, and what it said."""
    for step in trajectory.steps:
        if step.call and step.status in (StepStatus.OK, StepStatus.TOOL_ERROR):
            yield step.call, ToolResult(step.status, step.observation)


def never_recorded(_: ToolCall) -> ToolResult:
    """What a call gets that nobody recorded."""
    return ToolResult(StepStatus.TOOL_ERROR, protocol_error(NEVER_RECORDED))


class ReplaySession(Session):
    """One run of one query. It has no state: the same call always gets the same response.

    `recorded` looks a call up; `otherwise` answers a call of an offered tool with right arguments that is not recorded.
    """

    def __init__(
        self,
        query: Query,
        recorded: Callable[[ToolCall], ToolResult | None],
        otherwise: Callable[[ToolCall], ToolResult] = never_recorded,
    ) -> None:
        self._recorded, self._otherwise = recorded, otherwise
        self._parameters: dict[str, Mapping[str, Any]] = {
            t["function"]["name"]: t["function"]["parameters"] for t in query.tools
        }

    def call(self, call: ToolCall) -> ToolResult:
        """The recorded response; else an error: no such tool, arguments that break its schema, or never recorded.

        What was recorded stands even where the arguments break the schema: the real tool took them.
        """
        if call.name not in self._parameters:
            return ToolResult(StepStatus.UNKNOWN_TOOL, unknown_function(call.name))
        if (recorded := self._recorded(call)) is not None:
            return recorded
        if problem := check_arguments(self._parameters[call.name], call.arguments):
            return ToolResult(StepStatus.INVALID_ARGUMENTS, protocol_error(f"Invalid arguments: {problem}"))
        return self._otherwise(call)
