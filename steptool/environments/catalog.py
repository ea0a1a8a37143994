"""Environments by name."""

from __future__ import annotations

from collections.abc import Sequence

from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment
from steptool.environments.named import find_named
from steptool.records import Trajectory

NAMES = ("bfcl", "desk", "functions", "mcp", "replay", "toolbench")


def open_environment(name: str, config: ToolsConfig, demonstrations: Sequence[Trajectory] = ()) -> Environment:
    """The environment of that name; `replay` answers from the demonstrations' recorded responses.

    A name with a colon, `package.module:name` or `path/to/file.py:name`, is a class of the user's own, made without
    arguments. Raises ConfigError for a name that is not known and for an environment whose settings are missing.
    """
    if ":" in name:
        own: Environment = find_named(name, "environment", "a class of environments")()
        return own
    if name == "bfcl":
        from steptool.environments.bfcl.environment import BfclEnvironment

        return BfclEnvironment()
    if name == "desk":
        from steptool.environments.desk.tasks import DeskEnvironment

        return DeskEnvironment()
    if name == "functions":
        from steptool.environments.functions import FunctionsEnvironment

        return FunctionsEnvironment(config.functions)
    if name == "mcp":
        from steptool.environments.mcp.environment import McpEnvironment

        return McpEnvironment(config.mcp, config.timeout)
    if name == "replay":
        from steptool.environments.replay import ReplayEnvironment

        return ReplayEnvironment(demonstrations)
    if name == "toolbench":
        from steptool.environments.toolbench.environment import open_toolbench

        return open_toolbench(config.toolbench, config.timeout)
    known = ", ".join(NAMES)
    raise ConfigError(f"no environment is named '{name}'; known are {known}, and package.module:Class for your own")
