"""Environments by name: those of this package in a table, and a class of your own that the configuration names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, describe_error
from steptool.records import Query, Trajectory

ENVIRONMENTS = {
    "bfcl": "steptool.environments.bfcl.environment:BfclEnvironment",
    "desk": "steptool.environments.desk.environment:DeskEnvironment",
    "functions": "steptool.environments.functions.environment:FunctionsEnvironment",
    "mcp": "steptool.environments.mcp.environment:McpEnvironment",
    "replay": "steptool.environments.replay:ReplayEnvironment",
    "toolbench": "steptool.environments.toolbench.environment:ToolBenchEnvironment",
}
"""The environments of this package: their names and the places of their classes, imported when one is opened."""
DEFAULT_ENVIRONMENT = "replay"
"""The environment of tasks that name none, unless the configuration names another."""
_PROJECT = Path(__file__).parents[2]
_SHOWN = 3
"""Problems of queries that an error shows."""


def default_environment(config: Config) -> str:
    """Name of the environment of tasks that name none."""
    return config.data.environment or DEFAULT_ENVIRONMENT


def environment_class(name: str, config: Config) -> type[Environment]:
    """The class of an environment: one of this package, or the class of your own that `data.environment` names.

    Only the configuration can name a class of your own: a name in a task or in a file of queries runs no code. Raises
    ConfigError for a name that is not known and for an object that is not a complete environment.
    """
    if name in ENVIRONMENTS:
        field, place = f"environment '{name}'", ENVIRONMENTS[name]
    elif ":" in name and name == config.data.environment:
        field, place = "data.environment", name
    else:
        raise ConfigError(f"no environment is named '{name}'; expected {expected_names(config)}")
    cls = import_object(place, field, "a class of environments")
    if not (inspect.isclass(cls) and issubclass(cls, Environment)):
        raise ConfigError(f"{field}: expected a subclass of {Environment.__module__}.Environment, got {cls!r}")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigError(f"{field}: the class {cls.__name__} lacks the methods {', '.join(missing)}")
    return cls


def expected_names(config: Config) -> str:
    """The names that tasks may use, for error messages."""
    own = config.data.environment
    names = [*ENVIRONMENTS, own] if ":" in own else [*ENVIRONMENTS]
    return f"one of {', '.join(names)}, or in data.environment package.module:Class for your own"


def open_environment(name: str, config: Config, recordings: Iterable[Trajectory] = ()) -> Environment:
    """The environment of that name; `recordings` are read only by an environment that needs them.

    Raises ConfigError for a name that is not known and for an environment whose settings are missing or wrong.
    """
    cls = environment_class(name, config)
    try:
        return cls.open(config.tools, recordings)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"environment '{name}' cannot be opened: {type(error).__name__}: {error}") from error


def check_queries(environment: Environment, queries: Sequence[Query]) -> None:
    """Open and close a session for each query, start the first, and ask the environment for its tools.

    It finds out before anything expensive what would end a run later. Raises ConfigError naming the first queries that
    lack what the environment needs, such as their state, and for tools that cannot be reached.
    """
    problems: list[str] = []
    for number, query in enumerate(queries):
        try:
            with closing(environment.reset(query)) as session:
                if number == 0:
                    session.start()
        except Exception as error:
            problems.append(f"{query.split} query '{query.query_id}': {describe_error(error)}")
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
        raise ConfigError(f"{field}: '{place}' cannot be imported: {type(error).__name__}: {error}") from error
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
