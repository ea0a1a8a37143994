"""What an environment is: something that can be reset for a query and then called, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from steptool.trajectory import Query, StepStatus, ToolCall


@dataclass(frozen=True)
class ToolResult:
    """What one call gave back."""

    status: StepStatus
    observation: str


class Session(Protocol):
    """One stateful run of one query. Sessions share no state."""

    def call(self, call: ToolCall) -> ToolResult:
        """Execute one call. A failing tool is a result with its status, never an exception."""
        ...

    def solved(self, final_answer: str | None) -> float | None:
        """The environment's verdict on the answer and the final state, in [0, 1]; None if it has none."""
        ...


class Environment(Protocol):
    """A family of tasks that can be executed."""

    name: str

    def reset(self, query: Query) -> Session:
        """A fresh session for the query."""
        ...
