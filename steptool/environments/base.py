"""What an environment is: a family of tasks whose tool calls can be executed, one session for each episode."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory


class TransportError(Exception):
    """A call did not reach the tool, or its answer was lost; the call may be repeated without harm."""


class VerdictError(Exception):
    """The check of an episode failed, so that it has no verdict. The text names the check and says what failed."""


@dataclass(frozen=True)
class ToolResult:
    """What one call returned."""

    status: StepStatus
    observation: str
    ends_episode: bool = False
    """The environment has nothing more to offer after this call, such as a game that is over: no turn follows."""


def describe_error(error: BaseException) -> str:
    """Kind and text of an error, and of the errors in a group; the kind alone if the text cannot be read."""
    kind = type(error).__name__
    try:
        text = f"{kind}: {error}"
    except BaseException:
        return f"{kind}, and its text cannot be read"
    if isinstance(error, BaseExceptionGroup):
        return f"{text}: {'; '.join(map(describe_error, error.exceptions))}"
    return text


class Session(ABC):
    """One episode of one query. Sessions share no state: what one changes, no other sees."""

    @abstractmethod
    def call(self, call: ToolCall) -> ToolResult:
        """Execute one call. A failing tool is a result with its status. Raises TransportError where the call may be
        tried again; any other exception is a failed step as well, with its text as the observation.
        """

    def start(self) -> None:
        """Make what the first call would make, such as the object that holds the tools; nothing, as here, if there is
        none. Raises what the making raises, so that a check before a run finds it.
        """
        return

    def offers(self, name: str) -> bool:
        """Whether a tool that the query does not list may be called by now: the user has brought it in a later turn."""
        return False

    def solved(self, final_answer: str | None) -> float | None:
        """The environment's verdict on the answer and the final state, in [0, 1]; None, as here, if it has none.

        An exception means that the check failed: the episode has no verdict, and the reference answer does not replace
        it.
        """
        return None

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says after the assistant has answered; None, as here, where the answer ends the episode."""
        return None

    def close(self) -> None:
        """Release what the session holds. Called once, after `solved`."""
        return


class Environment(ABC):
    """A family of tasks whose tool calls can be executed.

    A runner opens the environment once, resets it for each episode, and sends the session one call after the other:

        environment = Shelf.open(config.tools)          # once for a stage
        session = environment.reset(query)              # an episode begins
        result = session.call(ToolCall("take", {"item": "kettle"}))
        assert result.status is StepStatus.OK           # result.observation is what the model reads next
        session.solved("I took the kettle.")            # the verdict after the last step: 1.0, 0.0 or None
        session.close()
        environment.close()

    A complete environment needs `name`, `reset` and a session with `call`:

        class ShelfSession(Session):
            def __init__(self, query: Query, capacity: int) -> None:
                self.query, self.free, self.taken = query, capacity, []

            def call(self, call: ToolCall) -> ToolResult:
                if call.name != "take":
                    return ToolResult(StepStatus.UNKNOWN_TOOL, '{"error": "there is no such tool"}')
                if not self.free:
                    return ToolResult(StepStatus.TOOL_ERROR, '{"error": "the basket is full"}')
                self.free -= 1
                self.taken.append(call.arguments["item"])
                return ToolResult(StepStatus.OK, '{"done": true}')

            def solved(self, final_answer: str | None) -> float:
                return float(self.taken == self.query.reference.environment["items"])

        class Shelf(Environment):
            name = "shelf"

            def __init__(self, capacity: int = 2) -> None:
                self.capacity = capacity

            def reset(self, query: Query) -> ShelfSession:
                return ShelfSession(query, self.capacity)

    `data.environment: shelf.py:Shelf` uses it, and `tools.settings: {capacity: 3}` are the arguments that it is made
    with. The environments of this package are opened in the same way (`steptool.environments.catalog`).
    """

    name: str
    """Its name in error messages."""
    blocking: bool = False
    """Calls may wait for others or hang: they run in threads of their own, within a time limit."""
    needs_recordings: ClassVar[bool] = False
    """It answers from recorded trajectories alone, so reference solutions cannot be played in it."""

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The environment of a configuration; as here, made with `tools.settings` as keyword arguments.

        `recordings` are read only by an environment that needs them. Raises ConfigError for settings that do not fit.
        """
        try:
            inspect.signature(cls).bind(**tools.settings)
        except TypeError as error:
            raise ConfigError(f"tools.settings: {cls.__name__}: {error}; expected its keyword arguments") from None
        return cls(**tools.settings)

    @abstractmethod
    def reset(self, query: Query) -> Session:
        """A fresh session for the query. It returns at once: what takes long waits for the first call.

        Raises ValueError for a query that lacks what the environment needs, such as its state.
        """

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of its tools, without Finish, for tasks that list none; `steptool.chat.calls` adds a read-only hint.

        Raises ValueError if it has no such list.
        """
        raise ValueError(f"the environment '{self.name}' has no tools of its own: give each task a list of tools")

    def close(self) -> None:
        """Release what the environment holds."""
        return
