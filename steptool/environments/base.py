"""What an environment is, and the environments by name.

An environment is a family of tasks whose tool calls can be executed, with one session for each episode. ENVIRONMENTS
lists those of this package; a configuration can name a class of your own.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

from steptool.artifacts.errors import describe_with_class
from steptool.config import Config, ToolsConfig
from steptool.config.base import ConfigError
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory


class TransportError(Exception):
    """A call did not reach the tool, or its answer was lost; the call may be repeated without harm."""


class VerdictError(Exception):
    """The check of an episode failed, so that it has no verdict. The text names the check and says what failed."""


class EpisodeEnd(Exception):
    """A tool raises this to end the episode, as when a game is over. Its text is what the model would read next.

    The step counts as a success. The session is asked for its verdict afterwards, as at the end of every episode.
    """


@dataclass(frozen=True)
class ToolResult:
    """What one call returned."""

    status: StepStatus
    observation: str
    ends_episode: bool = False
    """Whether the call ends the episode, as when a game is over. No turn follows then."""

    @classmethod
    def failure(cls, status: StepStatus, reason: str) -> Self:
        """The result of a call that failed: an object that says why, as JSON."""
        return cls(status, json.dumps({"error": reason}, ensure_ascii=False))


def describe_with_line(error: BaseException) -> str:
    """An error of a user's own code in one line, with the file and the line that raised it."""
    text = " ".join(describe_with_class(error).split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen ")]
    own_frames = [f for f in frames if not Path(f.filename).is_relative_to(_PROJECT / "steptool")]
    return f"{text} ({Path(own_frames[-1].filename).name}, line {own_frames[-1].lineno})" if own_frames else text


def find_end(error: BaseException) -> EpisodeEnd | None:
    """The EpisodeEnd that an error is, or of which a group consists: a task group wraps what its tasks raise."""
    if isinstance(error, BaseExceptionGroup):
        ends = [find_end(part) for part in error.exceptions]
        return ends[0] if None not in ends else None
    return error if isinstance(error, EpisodeEnd) else None


class Session(ABC):
    """One episode of one query. Sessions share no state: a session never sees what another one changes.

    `call`, `state_digest`, `solved`, `next_turn` and `close` may be coroutines (`async def call(...)`). They run in one
    event loop for all sessions of the environment, and a coroutine that takes longer than `tools.timeout` is cancelled.
    """

    @abstractmethod
    def call(self, call: ToolCall) -> ToolResult:
        """Execute one call. A failing tool is a result with its status. Raises TransportError where the call may be
        tried again, and EpisodeEnd where it ends the episode; any other exception is a failed step, with its text as
        the observation.
        """

    def start(self) -> None:
        """Prepare what the first call needs, such as the object that holds the tools. The default does nothing. Errors
        are raised here, so that a check before a run finds them.
        """
        return

    def offers(self, name: str) -> bool:
        """Whether a tool that the query does not list may be called now, because the user has added it in a later
        turn."""
        return False

    def state_digest(self) -> str | None:
        """A short text that is equal for two states of a task if later calls get equal answers in both; None, the
        default, if the environment names no states. Only `credit.state: digest` asks for it, before each step.
        """
        return None

    def solved(self, final_answer: str | None) -> float | None:
        """The environment's verdict on the answer and the final state, in [0, 1]; None, the default, if it has none.

        An exception means that the check failed: the episode has no verdict, and the reference answer does not replace
        it.
        """
        return None

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says after the assistant has answered; None, the default, if the answer ends the episode."""
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
    with. The environments of this package are opened in the same way (`steptool.environments.base`).
    """

    name: str = ""
    """Its name in error messages and traces."""
    blocking: bool = False
    """Whether calls may wait or hang. They then run in threads of their own, within a time limit."""
    needs_recordings: ClassVar[bool] = False
    """Whether it answers from recorded trajectories alone, so that reference solutions cannot be played in it."""
    read_only: ClassVar[frozenset[str]] = frozenset()
    """Names of tools that change nothing. A hint in a tool's schema goes before this list. The list also holds for
    tasks that bring their own tools."""

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The environment of a configuration. The default passes `tools.settings` to the class as keyword arguments.

        `recordings` are read only by an environment that needs them. Raises ConfigError for settings that do not fit.
        """
        try:
            inspect.signature(cls).bind(**tools.settings)
        except TypeError as error:
            raise ConfigError(f"tools.settings: {cls.__name__}: {error}; expected its keyword arguments") from None
        return cls(**tools.settings)

    @abstractmethod
    def reset(self, query: Query) -> Session:
        """A fresh session for the query. It returns at once: slow work waits for the first call.

        Raises ValueError for a query that lacks what the environment needs, such as its state.
        """

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of its tools, without Finish, for tasks that list none.

        `steptool.chat.messages` adds a hint that a tool only reads.

        Raises ValueError if it has no such list.
        """
        raise ValueError(f"the environment '{self.name}' has no tools of its own: give each task a list of tools")

    def tasks(self) -> Iterable[Mapping[str, Any]]:
        """Its own tasks, for `data.source: environment`, in the form of the lines of a file of tasks
        (docs/bring-your-own-data.md): instruction, and perhaps id, split, tools, reference, tier and max_steps.

        Raises ValueError if it has no tasks of its own.
        """
        raise ValueError(f"the environment '{self.name}' has no tasks of its own: name files of tasks in data.paths")

    def close(self) -> None:
        """Release what the environment holds."""
        return


ENVIRONMENTS = {
    "bfcl": "steptool.environments.bfcl:BfclEnvironment",
    "desk": "steptool.environments.desk.environment:DeskEnvironment",
    "functions": "steptool.environments.functions.environment:FunctionsEnvironment",
    "mcp": "steptool.environments.mcp.environment:McpEnvironment",
    "nemo_gym": "steptool.environments.nemo_gym:NemoGymEnvironment",
    "openenv": "steptool.environments.openenv:OpenEnvEnvironment",
    "replay": "steptool.environments.replay:ReplayEnvironment",
    "toolbench": "steptool.environments.toolbench:ToolBenchEnvironment",
    "verifiers": "steptool.environments.verifiers:VerifiersEnvironment",
}
"""The environments of this package: their names and the places of their classes, imported when one is opened."""
DEFAULT_ENVIRONMENT = "replay"
"""The environment of tasks that name none, unless the configuration names another."""
_PROJECT = Path(__file__).parents[2]
_SHOWN = 3
"""Problems of queries that an error shows."""


def get_default_environment(config: Config) -> str:
    """Name of the environment of tasks that name none."""
    return config.data.environment or DEFAULT_ENVIRONMENT


def find_environment_class(name: str, config: Config) -> type[Environment]:
    """The class of an environment: one of this package, or the class of your own that `data.environment` names.

    Only the configuration can name a class of your own: a name in a task or in a file of queries runs no code. Raises
    ConfigError for a name that is not known and for an object that is not a complete environment.
    """
    if name in ENVIRONMENTS:
        field, place = f"environment '{name}'", ENVIRONMENTS[name]
    elif ":" in name and name == config.data.environment:
        field, place = "data.environment", name
    else:
        raise ConfigError(f"no environment is named '{name}'; expected {list_expected_names(config)}")
    cls = import_object(place, field, "a class of environments")
    if not (inspect.isclass(cls) and issubclass(cls, Environment)):
        raise ConfigError(f"{field}: expected a subclass of {Environment.__module__}.Environment, got {cls!r}")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigError(f"{field}: the class {cls.__name__} lacks the methods {', '.join(missing)}")
    if not isinstance(cls.read_only, set | frozenset | list | tuple):
        raise ConfigError(f"{field}: {cls.__name__}.read_only: expected a set of names, got {cls.read_only!r}")
    return cls


def list_expected_names(config: Config) -> str:
    """The names that tasks may use, for error messages."""
    own_class = config.data.environment
    names = [*ENVIRONMENTS, own_class] if ":" in own_class else [*ENVIRONMENTS]
    return f"one of {', '.join(names)}, or in data.environment package.module:Class for your own"


def open_environment(name: str, config: Config, recordings: Iterable[Trajectory] = ()) -> Environment:
    """The environment of that name; `recordings` are read only by an environment that needs them.

    Raises ConfigError for a name that is not known and for an environment whose settings are missing or wrong.
    """
    cls = find_environment_class(name, config)
    try:
        return cls.open(config.tools, recordings)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"environment '{name}' cannot be opened: {type(error).__name__}: {error}") from error


def check_queries(environment: Environment, queries: Sequence[Query]) -> None:
    """Open and close a session for each query, start the first, and ask the environment for its tools.

    This finds the errors that would end a run later, before anything expensive starts. Raises ConfigError naming the
    first queries that lack what the environment needs, such as their state, and for tools that cannot be reached.
    """
    problems: list[str] = []
    for number, query in enumerate(queries):
        try:
            with closing(environment.reset(query)) as session:
                if number == 0:
                    session.start()
        except Exception as error:
            problems.append(f"{query.split} query '{query.query_id}': {describe_with_class(error)}")
    if problems:
        examples = "; ".join(problems[:_SHOWN]) + ("; ..." if len(problems) > _SHOWN else "")
        raise ConfigError(
            f"the environment '{environment.name}' cannot start {len(problems)} of {len(queries)} tasks: {examples}"
        )
    with suppress(ValueError):  # it has no list of tools: each task has one
        environment.tools()


def import_object(named: str, field: str, what: str) -> Any:
    """The object behind `package.module:name` or `path/to/file.py:name`.

    Raises ConfigError naming the configuration's `field` if there is no such object; `what` says what is expected.
    """
    place, _, name = named.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{field}: expected 'package.module:name' or 'path/to/file.py:name' of {what}, got '{named}'")
    try:
        module = _import_file(Path(place), field) if place.endswith(".py") else importlib.import_module(place)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{field}: '{place}' cannot be imported: {describe_with_line(error)}") from error
    if not hasattr(module, name):
        raise ConfigError(f"{field}: '{place}' has nothing named '{name}'")
    return getattr(module, name)


def _import_file(path: Path, field: str) -> ModuleType:
    """The module in a file, imported once. A relative path counts from the current folder, else from the project's."""
    file = next((f.resolve() for f in (path, _PROJECT / path) if f.is_file()), None)
    if file is None:
        raise ConfigError(f"{field}: there is no file '{path}', neither in {Path.cwd()} nor in {_PROJECT}")
    name = str(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
