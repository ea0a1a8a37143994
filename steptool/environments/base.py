"""What an environment is: something that can be reset for a query and then called, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steptool.records import Query, StepStatus, ToolCall, ToolSchema


class TransportError(Exception):
    """A call did not reach the tool or its answer was lost, and making the call again does no harm."""


@dataclass(frozen=True)
class ToolResult:
    """What one call gave back."""

    status: StepStatus
    observation: str


class Session(Protocol):
    """One stateful run of one query. Sessions share no state. Subclass it to inherit what most sessions do not need."""

    def call(self, call: ToolCall) -> ToolResult:
        """Execute one call. A failing tool is a result with its status, never an exception.

        Raises TransportError, and nothing else, where the call may be tried again.
        """
        ...

    def offers(self, name: str) -> bool:
        """Whether a tool that the query does not list may be called by now: the user has brought it in a later turn."""
        return False

    def solved(self, final_answer: str | None) -> float | None:
        """The environment's verdict on the answer and the final state, in [0, 1]; None if it has none."""
        ...

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says after the assistant has answered; None, as here, where the answer ends the episode."""
        return None

    def close(self) -> None:
        """Give back what the session holds. Called once, after `solved`."""
        return


class Environment(Protocol):
    """A family of tasks that can be executed. Subclass it to inherit what most environments do not need."""

    name: str
    blocking: bool = False
    """Calls may wait for others or hang: they run in threads of their own, within a time limit."""

    def reset(self, query: Query) -> Session:
        """A fresh session for the query. Returns at once: what takes long waits for the first call."""
        ...

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of its tools, without Finish, for tasks that list none. Raises ValueError if it has no such list."""
        raise ValueError(f"the environment '{self.name}' has no tools of its own: give each task a list of tools")

    def close(self) -> None:
        """Give back what the environment holds."""
        return
