"""MCP servers as tools: over the standard input and output of a process, or over streamable HTTP.

Each connection to a server is one task of an event loop that runs in a thread of its own.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Self

import anyio
import httpx2
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, MCPError, Tool
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST, CallToolResult

from steptool.artifacts.metrics import escape_controls
from steptool.config import McpConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, Session, ToolResult, TransportError
from steptool.environments.mcp.answers import describe_cause, describe_unreadable, write_answer_text
from steptool.environments.mcp.transport import (
    CheckedStream,
    LimitedTransport,
    convert_tool,
    open_stdio,
    select_usable_tools,
)
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory
from steptool.storage.http import Redactor

_CHARACTERS = 300
"""Characters of the end of a server's error output that are kept."""
_PATIENCE = 0.5
"""Seconds to wait for the last lines of a server that has ended."""
_TIME_SHARE = 0.9
"""Share of the time limit after which a request is cancelled: early enough to say so before the call is given up."""
_MAX_UNANSWERED = 2
"""Unanswered calls in a row after which a server counts as hung."""
_LOST = {CONNECTION_CLOSED: "Connection closed", INVALID_REQUEST: "Session terminated"}
"""Codes and messages with which the library says that a connection is of no further use."""
_NEXT_CALL = "; the next call goes to a new server or session, which may know nothing of the calls before"
_LAST_WORDS_WAIT = 1.0
"""Seconds that a lost server has to end and say why."""


class Connector:
    """Makes connections to the server of a configuration. Raises ConfigError unless it names exactly one."""

    def __init__(self, server: McpConfig) -> None:
        if bool(server.command) == bool(server.url):
            raise ConfigError(
                "the environment 'mcp' needs either tools.mcp.command or tools.mcp.url; see docs/tools/mcp.md"
            )
        self.address = server.url or " ".join(server.command)
        self._server = server
        secrets: set[str] = set()
        self._env = _substitute(server.env, "env", secrets)
        self._headers = _substitute(server.headers, "headers", secrets)
        self.redactor = Redactor(secrets)
        self._tls = httpx2.create_ssl_context() if server.url else None
        # What the library finds wrong with a server becomes an observation; its log would repeat it with a traceback.
        for logger in ("mcp", "client"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._thread = ExitStack()
        self._portal: BlockingPortal = self._thread.enter_context(start_blocking_portal(name="mcp"))
        atexit.register(self.close)

    def connect(self, seconds: float) -> ServerConnection:
        """Start the server or call its address, shake hands and list its tools.

        Raises TransportError, with the end of the server's error output, if that fails or takes longer. No tool has
        been called then.
        """
        error_output = _ErrorOutput() if self._server.command else None
        try:
            end, (client, tools, faults, stop) = self._portal.start_task(
                self._run_connection, error_output, max(0.0, seconds)
            )
        except Exception as error:
            last_lines = error_output.take() if error_output else ""
            raise TransportError(
                self.redactor.redact_text(f"{self.address}: {describe_cause(error)}{last_lines}")
            ) from error
        finally:
            if error_output:
                error_output.file.close()
        return ServerConnection(tools, faults, self._portal, client, stop, end, error_output)

    def close(self) -> None:
        """End every connection, and wait for the processes behind them."""
        atexit.unregister(self.close)
        with suppress(RuntimeError):  # it was closed before
            self._portal.call(self._portal.stop, True)
        self._thread.close()

    async def _run_connection(
        self, error_output: _ErrorOutput | None, seconds: float, *, task_status: TaskStatus[Any]
    ) -> None:
        """Open a connection and close it again, which have to happen in the same task."""
        stop, faults = anyio.Event(), list[str]()
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
            try:
                async with Client(self._check_lists(self._open_transport(error_output), faults), cache=None) as client:
                    tools = await _list_tools(client, faults)
                    scope.deadline = math.inf
                    task_status.started((client, tools, faults, stop))
                    await stop.wait()
            except BaseExceptionGroup as group:  # anything but an Exception would end the loop
                raise ConnectionError(describe_cause(group)) from group
        if scope.cancelled_caught:
            raise TimeoutError(f"no connection within {seconds:.3g} s")

    @asynccontextmanager
    async def _check_lists(self, transport: AbstractAsyncContextManager[Any], faults: list[str]) -> AsyncIterator[Any]:
        async with transport as (receive, write):
            yield CheckedStream(receive, faults), write

    def _open_transport(self, error_output: _ErrorOutput | None) -> AbstractAsyncContextManager[Any]:
        if error_output is None:
            return self._open_http()
        program, *arguments = self._server.command
        command = [sys.executable if program == "python" else program, *arguments]
        return open_stdio(command, self._env, error_output.file)

    @asynccontextmanager
    async def _open_http(self) -> AsyncIterator[Any]:
        """A transport without time limits of its own: such a limit would end the whole connection, not one request.

        Each request has a TCP connection of its own. A server may close one that is kept for later requests at any
        time, and what is sent over it then is lost: the call may have been executed, so it could not be repeated.
        """
        async with (
            httpx2.AsyncClient(
                headers=self._headers,
                transport=LimitedTransport(
                    verify=self._tls or True,
                    limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
                ),
                timeout=None,
            ) as http,
            streamable_http_client(self._server.url, http_client=http) as streams,
        ):
            yield streams


@dataclass(frozen=True)
class ServerConnection:
    """An open connection to a server. Several threads may use it at once."""

    tools: Mapping[str, Tool]
    """The server's tools by the names that a model calls them by."""
    faults: Sequence[str]
    """What is wrong with the tools that were left out."""
    _portal: BlockingPortal
    _client: Client
    _stop: anyio.Event
    _ended: Future[None]
    _error_output: _ErrorOutput | None

    @property
    def server(self) -> str:
        """The name that the server gives itself."""
        about = self._client.server_info
        return about.name if about else "without a name"

    def ask(self, name: str, arguments: Mapping[str, Any], seconds: float) -> CallToolResult:
        """The tool's answer. Raises TimeoutError, after the request was cancelled at the server, and whatever the
        library raises."""
        answer: CallToolResult = self._portal.call(self._ask, self.tools[name].name, dict(arguments), seconds)
        return answer

    async def _ask(self, name: str, arguments: dict[str, Any], seconds: float) -> CallToolResult:
        with anyio.fail_after(max(0.0, seconds)):
            return await self._client.call_tool(name, arguments)

    def end(self, seconds: float | None = None) -> str:
        """End the connection, and with it the process of a server over stdio, and wait so many seconds for it.

        Returns the end of the server's error output, once it has ended.
        """
        with suppress(RuntimeError):  # the loop was closed, and the connection with it
            self._portal.call(self._stop.set)
        done, _ = wait([self._ended], seconds)
        return self._error_output.take() if done and self._error_output else ""


class _ErrorOutput:
    """Takes what a server writes to its standard error, so that it does not get into ours, and keeps its end."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.file = os.fdopen(write, "w")
        self._text = ""
        self._thread = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._thread.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as output:
            while chunk := output.read1(1 << 12):
                self._text = (self._text + chunk.decode("utf-8", "replace"))[-2 * _CHARACTERS :]

    def take(self) -> str:
        """The end of the output as the end of a sentence; empty without output."""
        self.file.close()
        self._thread.join(_PATIENCE)
        text = " ".join(self._text.split())
        return f" (it said: {text[-_CHARACTERS:]})" if text else ""


async def _list_tools(client: Client, faults: list[str]) -> dict[str, Tool]:
    """All pages of the server's tools, by the names that a model calls them by."""
    page = await client.list_tools()
    tools = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        tools += page.tools
    return select_usable_tools(tools, faults)


def _substitute(values: Mapping[str, str], field: str, secrets: set[str]) -> dict[str, str]:
    """The values with ${NAME} replaced by our own environment's variables, so that no file has to hold a secret.

    The variables' values are added to `secrets`, unless they are paths of something that exists.
    """
    try:
        for value in values.values():
            values_used = {os.environ[name] for name in Template(value).get_identifiers()}
            secrets |= {text for text in values_used if not (text.startswith("/") and Path(text).exists())}
        return {name: Template(value).substitute(os.environ) for name, value in values.items()}
    except KeyError as error:
        raise ConfigError(f"tools.mcp.{field}: the environment variable {error} is not set") from None
    except ValueError as error:
        raise ConfigError(f"tools.mcp.{field}: {error}; write ${{NAME}} for a variable and $$ for a $") from None


class McpEnvironment(Environment):
    """The tools of an MCP server. `timeout` is the limit on a call in seconds.

    With `server.shared` all episodes use one connection; otherwise each has its own, which over stdio is a process. It
    is opened at the first call. The server gives no verdict. Raises ConfigError unless the configuration names exactly
    one server.
    """

    name, blocking = "mcp", True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The tools of the server that `tools.mcp` names."""
        return cls(tools.mcp, tools.timeout)

    def __init__(self, server: McpConfig, timeout: float) -> None:
        self._connector, self._timeout = Connector(server), timeout
        self._shared = self._make_client() if server.shared else None

    def tools(self) -> Sequence[ToolSchema]:
        """What the server lists, with a warning for tools that cannot be used.

        Raises ConfigError if the server cannot be reached, and if it has tools of which none can be used.
        """
        client = self._shared or self._make_client()
        try:
            return client.tools()
        except TransportError as error:
            raise ConfigError(f"tools.mcp: the server does not list its tools: {error}") from error
        finally:
            if client is not self._shared:
                client.close()

    def reset(self, query: Query) -> McpSession:
        """A session that reaches the server at its first call."""
        return McpSession(self._shared or self._make_client(), owned=self._shared is None)

    def close(self) -> None:
        """End every connection and every process."""
        if self._shared:
            self._shared.close()
        self._connector.close()

    def _make_client(self) -> _ReconnectingClient:
        return _ReconnectingClient(self._connector, self._timeout)


class McpSession(Session):
    """One episode. Its calls go over a connection of its own, or over the one that all episodes share."""

    def __init__(self, client: _ReconnectingClient, owned: bool) -> None:
        self._client, self._owned = client, owned

    def call(self, call: ToolCall) -> ToolResult:
        """The server's answer as text; a failed step where it reports an error, breaks the protocol or does not answer.

        Raises TransportError if the server cannot be reached, and never after a request was sent.
        """
        return self._client.call(call)

    def close(self) -> None:
        """End the episode's own connection."""
        if self._owned:
            self._client.close()


class _ReconnectingClient:
    """Calls over a connection that is opened at the first call, and opened again after it was lost."""

    def __init__(self, connector: Connector, timeout: float) -> None:
        self._connector, self._limit = connector, _TIME_SHARE * timeout
        self._lock = threading.Lock()
        self._connection: ServerConnection | None = None
        self._unanswered = 0

    def tools(self) -> list[ToolSchema]:
        """Schemas of the server's tools. Raises ConfigError if none of them can be used."""
        connection = self._open_connection(time.monotonic() + self._limit)
        if connection.faults:
            problem = self._connector.redactor.redact_text(f"tools.mcp: left out: {'; '.join(connection.faults)}")
            if not connection.tools:
                raise ConfigError(f"{problem}; none of the server's tools can be used")
            warnings.warn(escape_controls(problem), RuntimeWarning, stacklevel=3)
        schemas = [convert_tool(*entry) for entry in connection.tools.items()]
        redacted_schemas: list[ToolSchema] = self._connector.redactor.redact_value(schemas)
        return redacted_schemas

    def call(self, call: ToolCall) -> ToolResult:
        """The server's answer to one call."""
        deadline = time.monotonic() + self._limit
        connection = self._open_connection(deadline)
        tool = connection.tools.get(call.name)
        if tool is None:
            return ToolResult.failure(StepStatus.UNKNOWN_TOOL, f"the server has no tool named '{call.name}'")
        if problem := check_arguments(tool.input_schema, call.arguments):
            return ToolResult.failure(StepStatus.INVALID_ARGUMENTS, problem)
        try:
            result = connection.ask(call.name, call.arguments, deadline - time.monotonic())
        except Exception as error:
            problem = self._connector.redactor.redact_text(self._describe_failure(error, connection, call.name))
            return ToolResult.failure(StepStatus.TOOL_ERROR, problem)
        self._unanswered = 0
        text = self._connector.redactor.redact_text(write_answer_text(result))
        return ToolResult(StepStatus.TOOL_ERROR if result.is_error else StepStatus.OK, text)

    def close(self) -> None:
        """Close the connection and wait until the server has ended."""
        if self._connection:
            self._drop(self._connection, None)

    def _open_connection(self, deadline: float) -> ServerConnection:
        with self._lock:
            if self._connection is None:
                self._connection, self._unanswered = self._connector.connect(deadline - time.monotonic()), 0
            return self._connection

    def _describe_failure(self, error: Exception, connection: ServerConnection, tool: str) -> str:
        """Why a call brought no result; a connection that is of no further use is dropped."""
        if isinstance(error, TimeoutError):
            self._unanswered += 1
            problem = f"no answer within {self._limit:g} s"
            if self._unanswered < _MAX_UNANSWERED:
                return problem
            self._drop(connection, 0.0)
            return f"{problem}, as to the call before{_NEXT_CALL}"
        self._unanswered = 0
        if isinstance(error, MCPError) and _LOST.get(error.code) == error.message:
            return f"the server was lost{self._drop(connection, _LAST_WORDS_WAIT)}{_NEXT_CALL}"
        if reason := describe_unreadable(error):
            return f"the answer of the server '{connection.server}' to '{tool}' cannot be read: {reason}"
        return error.message if isinstance(error, MCPError) else f"{type(error).__name__}: {describe_cause(error)}"

    def _drop(self, connection: ServerConnection, seconds: float | None) -> str:
        with self._lock:
            if self._connection is connection:
                self._connection = None
        return connection.end(seconds)
