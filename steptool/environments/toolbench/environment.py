"""The tools of ToolBench as an environment: recorded responses first, then a server if there is one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

from steptool.config import ToolBenchConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, ToolResult
from steptool.environments.replay import ReplaySession, Responses, call_key, fail_unrecorded
from steptool.environments.toolbench.client import VirtualClient
from steptool.environments.toolbench.protocol import Endpoint, endpoints, protocol_error
from steptool.records import Query, StepStatus, ToolCall, Trajectory


class ToolBenchEnvironment(Environment):
    """Answers calls from recorded responses, from a server, or from recorded responses first.

    Successes of the server are recorded. Failures, such as a rate limit, may be temporary and are not.
    """

    name = "toolbench"

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The environment of `tools.toolbench`. Raises ConfigError naming the field at fault."""
        settings = tools.toolbench
        if not (settings.url or settings.cache):
            raise ConfigError(
                "tools.toolbench: neither 'url' nor 'cache' is given; name a server, a file of recorded responses, or "
                "both"
            )
        return cls(_client(settings, tools.timeout), _responses(settings))

    def __init__(self, client: VirtualClient | None, responses: Responses | None) -> None:
        self._client, self._responses = client, responses
        self.blocking = client is not None

    def reset(self, query: Query) -> ReplaySession:
        """A session for the query."""
        names = endpoints(query)
        return ReplaySession(query, partial(self._lookup, names), partial(self._ask, names))

    def _lookup(self, names: Mapping[str, Endpoint], call: ToolCall) -> ToolResult | None:
        return None if self._responses is None else self._responses.get(response_key(names, call))

    def _ask(self, names: Mapping[str, Endpoint], call: ToolCall) -> ToolResult:
        if self._client is None:
            return fail_unrecorded(call)
        if call.name not in names:
            problem = f"The task does not say which API {call.name} is."
            return ToolResult(StepStatus.TOOL_ERROR, protocol_error(problem))
        result = self._client.ask(names[call.name], call.arguments)
        if self._responses is None or result.status is not StepStatus.OK:
            return result
        self._responses.add([(response_key(names, call), result)])
        return self._responses.get(response_key(names, call)) or result

    def close(self) -> None:
        """Close the connections and the file of recorded responses."""
        if self._client is not None:
            self._client.close()
        if self._responses is not None:
            self._responses.close()


def response_key(names: Mapping[str, Endpoint], call: ToolCall) -> str:
    """Key of a call in the recorded responses: category, tool and API, or the function's name if the query has none."""
    return call_key(names.get(call.name, (call.name,)), call.arguments)


def _client(settings: ToolBenchConfig, timeout: float) -> VirtualClient | None:
    if not settings.url:
        return None
    key = os.environ.get(settings.key_variable, "").strip()
    try:
        return VirtualClient(settings.url, key, settings.strip, timeout)
    except ValueError as error:
        raise ConfigError(f"tools.toolbench: {error}") from None


def _responses(settings: ToolBenchConfig) -> Responses | None:
    if not settings.cache:
        return None
    if not settings.url and not Path(settings.cache).is_file():
        raise ConfigError(
            f"tools.toolbench.cache: '{settings.cache}' does not exist; build it with "
            "python -m steptool.environments.toolbench.cache, or give a url to fill it"
        )
    try:
        return Responses(settings.cache)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"tools.toolbench.cache: '{settings.cache}' cannot be opened: {error}") from None
