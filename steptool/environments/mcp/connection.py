"""Connections to an MCP server. Each lives in one task of an event loop that runs in a thread of its own."""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from string import Template
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters, Tool, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from steptool.chat.tools import annotate_tool
from steptool.config import McpConfig
from steptool.config.base import ConfigError
from steptool.environments.base import TransportError
from steptool.environments.schema import check_tools
from steptool.records import ToolSchema

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_LINES = 5
"""Last lines of a server's standard error that are kept."""
_WORDS = 300
"""Characters of them that are told."""
_PATIENCE = 0.5
"""Seconds to wait for the last lines of a server that has ended."""


class Connector:
    """Connects to the server of a configuration, as often as asked. Raises ConfigError if that names none."""

    def __init__(self, server: McpConfig) -> None:
        if bool(server.command) == bool(server.url):
            raise ConfigError(
                "the environment 'mcp' needs either tools.mcp.command or tools.mcp.url; see docs/tools/mcp.md"
            )
        self.where = server.url or " ".join(server.command)
        self._server = server
        self._env, self._headers = _filled(server.env, "env"), _filled(server.headers, "headers")
        self._tls = httpx2.create_ssl_context() if server.url else None
        # What the library finds wrong with a server becomes an observation; its log would repeat it with a traceback.
        for logger in ("mcp", "client"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._thread = ExitStack()
        self._portal: BlockingPortal = self._thread.enter_context(start_blocking_portal(name="mcp"))
        atexit.register(self.close)

    def connect(self, seconds: float) -> Connection:
        """Start the server or call its address, shake hands and list its tools.

        Raises TransportError, with what the server said last, if that fails or takes longer. No tool was called then.
        """
        words = _LastWords() if self._server.command else None
        try:
            ended, (client, tools, stop) = self._portal.start_task(self._hold, words, max(0.0, seconds))
        except Exception as error:
            said = words.take() if words else ""
            raise TransportError(f"{self.where}: {_reason(error)}{said}") from error
        finally:
            if words:
                words.file.close()
        return Connection(tools, self._portal, client, stop, ended, words)

    def close(self) -> None:
        """End every connection, and wait for the processes behind them."""
        atexit.unregister(self.close)
        with suppress(RuntimeError):  # it was closed before
            self._portal.call(self._portal.stop, True)
        self._thread.close()

    async def _hold(self, words: _LastWords | None, seconds: float, *, task_status: TaskStatus[Any]) -> None:
        """A connection from its start to its end: both have to happen in the same task."""
        stop = anyio.Event()
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
            try:
                async with Client(self._transport(words), cache=None) as client:
                    tools = await _listed(client)
                    scope.deadline = math.inf
                    task_status.started((client, tools, stop))
                    await stop.wait()
            except BaseExceptionGroup as group:  # anything but an Exception would end the loop
                raise ConnectionError(_reason(group)) from group
        if scope.cancelled_caught:
            raise TimeoutError(f"no connection within {seconds:.3g} s")

    def _transport(self, words: _LastWords | None) -> AbstractAsyncContextManager[Any]:
        if words is None:
            return self._http()
        program, *arguments = self._server.command
        parameters = StdioServerParameters(
            command=sys.executable if program == "python" else program,
            args=arguments,
            env=self._env,
            encoding_error_handler="replace",
        )
        return stdio_client(parameters, errlog=words.file)

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[Any]:
        """A transport without limits of its own: a limit that it met would end the connection, not the request."""
        async with (
            httpx2.AsyncClient(
                headers=self._headers,
                verify=self._tls or True,
                timeout=None,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            ) as http,
            streamable_http_client(self._server.url, http_client=http) as streams,
        ):
            yield streams


@dataclass(frozen=True)
class Connection:
    """A client that has shaken hands with its server. Several threads may use it at once."""

    tools: Mapping[str, Tool]
    """The server's tools by the names that a model calls them by."""
    _portal: BlockingPortal
    _client: Client
    _stop: anyio.Event
    _ended: Future[None]
    _words: _LastWords | None

    def ask(self, name: str, arguments: Mapping[str, Any], seconds: float) -> CallToolResult:
        """What the tool answers. Raises TimeoutError, once the server has been told that nobody waits any longer, and
        whatever the library raises."""
        answer: CallToolResult = self._portal.call(self._ask, self.tools[name].name, dict(arguments), seconds)
        return answer

    async def _ask(self, name: str, arguments: dict[str, Any], seconds: float) -> CallToolResult:
        with anyio.fail_after(max(0.0, seconds)):
            return await self._client.call_tool(name, arguments)

    def end(self, seconds: float | None = None) -> str:
        """Let go of the server, a process ends; wait so long for it. Returns what it said last, if it has ended."""
        with suppress(RuntimeError):  # the loop was closed, and the connection with it
            self._portal.call(self._stop.set)
        done, _ = wait([self._ended], seconds)
        return self._words.take() if done and self._words else ""


class _LastWords:
    """Takes what a server writes to its standard error, so that it does not get into ours, and keeps the end of it."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.file = os.fdopen(write, "w")
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._thread.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, errors="replace") as lines:
            self._lines.extend(lines)

    def take(self) -> str:
        """The last lines as the end of a sentence; empty if there are none."""
        self.file.close()
        self._thread.join(_PATIENCE)
        text = " ".join("".join(self._lines).split())
        return f" (it said: {text[-_WORDS:]})" if text else ""


def tool_schema(name: str, tool: Tool) -> ToolSchema:
    """A server's tool in OpenAI's form, with the server's hint whether it only reads."""
    described = {"name": name, "description": tool.description or tool.title or "", "parameters": tool.input_schema}
    hint = tool.annotations.read_only_hint if tool.annotations else None
    return annotate_tool({"type": "function", "function": described}, hint)


async def _listed(client: Client) -> dict[str, Tool]:
    """All pages of the server's tools, by names made of letters, digits, '_' and '-'."""
    page = await client.list_tools()
    found = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        found += page.tools
    named = [(_NOT_IN_NAMES.sub("_", tool.name)[:64], tool) for tool in found]
    check_tools([tool_schema(name, tool) for name, tool in named], "the server's list of tools")
    return dict(named)


def _filled(values: Mapping[str, str], field: str) -> dict[str, str]:
    """The values with ${NAME} replaced from our own environment, so that no secret has to stand in a file."""
    try:
        return {name: Template(value).substitute(os.environ) for name, value in values.items()}
    except KeyError as error:
        raise ConfigError(f"tools.mcp.{field}: the environment variable {error} is not set") from None
    except ValueError as error:
        raise ConfigError(f"tools.mcp.{field}: {error}; write ${{NAME}} for a variable and $$ for a $") from None


def _reason(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).partition("\n")[0] or type(error).__name__
