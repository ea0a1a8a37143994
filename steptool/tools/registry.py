"""Environments by name."""

from __future__ import annotations

from collections.abc import Sequence

from steptool.config import ConfigError, ToolsConfig
from steptool.tools.environment import Environment
from steptool.trajectory import Trajectory

NAMES = ("desk", "replay")


def open_environment(name: str, config: ToolsConfig, demonstrations: Sequence[Trajectory] = ()) -> Environment:
    """The environment of that name; `replay` answers from the demonstrations' recorded responses.

    Raises ConfigError for a name that is not known and for an environment whose settings are missing.
    """
    if name == "desk":
        from steptool.tools.desk.tasks import DeskEnvironment

        return DeskEnvironment()
    if name == "replay":
        from steptool.tools.replay import ReplayEnvironment

        return ReplayEnvironment(demonstrations)
    raise ConfigError(f"no environment is named '{name}'; known are {', '.join(NAMES)}")
