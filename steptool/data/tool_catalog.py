"""What environments offer to tasks and recordings that list no tools."""

from __future__ import annotations

from functools import cache

from steptool.config import Config
from steptool.data.intake import IngestError, UnusableError
from steptool.data.sources.toolbench import checked
from steptool.environments.catalog import ENVIRONMENTS, default_environment, expected_names, open_environment
from steptool.records import ToolSchema


class ToolCatalog:
    """Tools by environment, each asked once. Tasks that name no environment have that of `data.environment`."""

    def __init__(self, config: Config) -> None:
        """Raises IngestError if no environment has the name `data.environment`."""
        self._default, self._config = default_environment(config), config
        self._tools = cache(self._ask)
        try:
            self.environment(self._default)
        except UnusableError as error:
            raise IngestError(f"data.environment: {error.detail}") from None

    def environment(self, name: str = "") -> str:
        """The name, or without one the default. Raises UnusableError if no environment has it."""
        chosen = name or self._default
        if chosen not in ENVIRONMENTS and (chosen != self._default or ":" not in chosen):
            raise UnusableError("unknown environment", f"expected {expected_names(self._config)}, got '{chosen}'")
        return chosen

    def tools(self, environment: str = "") -> tuple[ToolSchema, ...]:
        """The tools of an environment, and Finish.

        Raises UnusableError if it has no list of tools, and ConfigError if its settings are missing.
        """
        return self._tools(self.environment(environment))

    def _ask(self, name: str) -> tuple[ToolSchema, ...]:
        environment = open_environment(name, self._config)
        try:
            listed = environment.tools()
        except ValueError as error:
            raise UnusableError("missing field 'tools'", f"field 'tools' is missing, and {error}") from None
        finally:
            environment.close()
        return checked(listed, f"environment '{name}'")
