"""How `pyflyte run` reads a configuration from its command line.

flytekit answers a mistyped path with "should be a valid json object", and broken YAML with a stack. This module makes
it read a configuration as `load_config` does. Overrides may follow the path: --config "my.yaml ppo.rounds=4 seed=1".
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

from steptool.config.base import ConfigError, StrictModel
from steptool.config.yaml_file import override, read_mapping

_CLICK_TYPES = "flytekit.interaction.click_types"


def read_configurations() -> None:
    """Make pyflyte read configurations this way. flytekit has no hook for it, so its method is replaced.

    Does nothing in a process that is not pyflyte's: these do not import flytekit's command line.
    """
    if _CLICK_TYPES in sys.modules:
        parameter = sys.modules[_CLICK_TYPES].JsonParamType
        parameter.convert = _replace(parameter.convert)


def _replace(convert: Callable[..., Any]) -> Callable[..., Any]:
    """flytekit's method, except that the path of a configuration becomes its content."""

    def convert_argument(self: Any, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        kind = self._python_type
        if not (isinstance(kind, type) and issubclass(kind, StrictModel)):
            return convert(self, value, param, context)
        try:
            if isinstance(value, str) and not value.lstrip().startswith("{"):
                path, *overrides = shlex.split(value)
                return kind.model_validate(override(read_mapping(path), overrides))
            return convert(self, value, param, context)
        except (ConfigError, ValueError) as error:
            raise click.BadParameter(str(error)) from None

    return convert_argument
