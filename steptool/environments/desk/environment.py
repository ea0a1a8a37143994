"""The desk as an environment: each session works on its own copy of the query's database."""

from __future__ import annotations

import json
from collections.abc import Sequence

from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.desk.database import make_database
from steptool.environments.desk.tools import TOOLS, ToolFailure
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, ToolSchema


class DeskSession(Session):
    """One episode of one query."""

    def __init__(self, query: Query) -> None:
        self._reference = query.reference
        self.database = make_database(str(query.reference.environment["database"]))

    def call(self, call: ToolCall) -> ToolResult:
        """Check the arguments against the tool's schema and execute the call."""
        tool = TOOLS.get(call.name)
        if tool is None:
            return _fail(StepStatus.UNKNOWN_TOOL, "no such tool")
        problem = check_arguments(tool.schema["function"]["parameters"], call.arguments)
        if problem:
            return _fail(StepStatus.INVALID_ARGUMENTS, "bad arguments")
        try:
            return ToolResult(StepStatus.OK, json.dumps(tool.run(self.database, **call.arguments)))
        except ToolFailure as failure:
            return _fail(StepStatus.TOOL_ERROR, str(failure))

    def solved(self, final_answer: str | None) -> float:
        """1 if the episode ended with an answer, and exactly the right writes and reports were made."""
        writes = sorted(map(list, self.database.journal))
        return float(final_answer is not None and writes == self._reference.environment["writes"])


def _fail(status: StepStatus, reason: str) -> ToolResult:
    return ToolResult(status, json.dumps({"error": reason}))


class DeskEnvironment(Environment):
    """The desk as an environment."""

    name = "desk"

    def reset(self, query: Query) -> DeskSession:
        """A session on a fresh copy of the query's database."""
        return DeskSession(query)

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of all tools of the desk."""
        return [tool.schema for tool in TOOLS.values()]
