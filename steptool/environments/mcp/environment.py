"""MCP servers as tools: over the standard input and output of a process, or over streamable HTTP."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

from mcp import MCPError
from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST, CallToolResult, EmbeddedResource, TextContent

from steptool.artifacts.metrics import printable
from steptool.config import McpConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, Session, ToolResult, TransportError
from steptool.environments.mcp.connection import Connection, Connector
from steptool.environments.mcp.safeguards import error_reason, tool_schema
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory

_TIME_SHARE = 0.9
"""Share of the time limit after which a request is cancelled: early enough to say so before the call is given up."""
_MAX_UNANSWERED = 2
"""Unanswered calls in a row after which a server counts as hung."""
_LOST = {CONNECTION_CLOSED: "Connection closed", INVALID_REQUEST: "Session terminated"}
"""Codes and messages with which the library says that a connection is of no further use."""
_NEXT_CALL = "; the next call goes to a new server or session, which may know nothing of the calls before"
_LAST_WORDS_WAIT = 1.0
"""Seconds that a lost server has to end and say why."""


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
        self._connection: Connection | None = None
        self._unanswered = 0

    def tools(self) -> list[ToolSchema]:
        """Schemas of the server's tools. Raises ConfigError if none of them can be used."""
        connection = self._open_connection(time.monotonic() + self._limit)
        if connection.faults:
            problem = self._connector.redactor.text(f"tools.mcp: left out: {'; '.join(connection.faults)}")
            if not connection.tools:
                raise ConfigError(f"{problem}; none of the server's tools can be used")
            warnings.warn(printable(problem), RuntimeWarning, stacklevel=3)
        schemas = [tool_schema(*entry) for entry in connection.tools.items()]
        redacted: list[ToolSchema] = self._connector.redactor.value(schemas)
        return redacted

    def call(self, call: ToolCall) -> ToolResult:
        """The server's answer to one call."""
        deadline = time.monotonic() + self._limit
        connection = self._open_connection(deadline)
        tool = connection.tools.get(call.name)
        if tool is None:
            return _fail(StepStatus.UNKNOWN_TOOL, f"the server has no tool named '{call.name}'")
        if problem := check_arguments(tool.input_schema, call.arguments):
            return _fail(StepStatus.INVALID_ARGUMENTS, problem)
        try:
            result = connection.ask(call.name, call.arguments, deadline - time.monotonic())
        except Exception as error:
            problem = self._connector.redactor.text(self._describe_failure(error, connection))
            return _fail(StepStatus.TOOL_ERROR, problem)
        self._unanswered = 0
        text = self._connector.redactor.text(answer_text(result))
        return ToolResult(StepStatus.TOOL_ERROR if result.is_error else StepStatus.OK, text)

    def close(self) -> None:
        """Close the connection and wait until the server has ended."""
        if self._connection:
            self._drop(self._connection, None)

    def _open_connection(self, deadline: float) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection, self._unanswered = self._connector.connect(deadline - time.monotonic()), 0
            return self._connection

    def _describe_failure(self, error: Exception, connection: Connection) -> str:
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
        return error.message if isinstance(error, MCPError) else f"{type(error).__name__}: {error_reason(error)}"

    def _drop(self, connection: Connection, seconds: float | None) -> str:
        with self._lock:
            if self._connection is connection:
                self._connection = None
        return connection.end(seconds)


def answer_text(result: CallToolResult) -> str:
    """The blocks of an answer, each on a line of its own, or its structured content if it has no blocks."""
    if not result.content and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(map(_block_text, result.content))


def _block_text(block: Any) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, EmbeddedResource):
        text: str | None = getattr(block.resource, "text", None)
        return f"[resource {block.resource.uri}]" if text is None else text
    about = getattr(block, "uri", None) or block.mime_type
    return f"[{block.type} {about}]"


def _fail(status: StepStatus, reason: str) -> ToolResult:
    return ToolResult(status, json.dumps({"error": reason}, ensure_ascii=False))
