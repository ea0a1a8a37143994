"""Connections to an MCP server. Each lives in one task of an event loop that runs in a thread of its own."""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters, Tool, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from steptool.config import McpConfig
from steptool.config.base import ConfigError
from steptool.environments.base import TransportError
from steptool.environments.mcp.safeguards import CheckedStream, LimitedTransport, error_reason, usable_tools
from steptool.storage.redaction import Redactor

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
        secrets: set[str] = set()
        self._env, self._headers = _filled(server.env, "env", secrets), _filled(server.headers, "headers", secrets)
        self.redactor = Redactor(secrets)
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
            ended, (client, tools, faults, stop) = self._portal.start_task(self._hold, words, max(0.0, seconds))
        except Exception as error:
            said = words.take() if words else ""
            raise TransportError(self.redactor.text(f"{self.where}: {error_reason(error)}{said}")) from error
        finally:
            if words:
                words.file.close()
        return Connection(tools, faults, self._portal, client, stop, ended, words)

    def close(self) -> None:
        """End every connection, and wait for the processes behind them."""
        atexit.unregister(self.close)
        with suppress(RuntimeError):  # it was closed before
            self._portal.call(self._portal.stop, True)
        self._thread.close()

    async def _hold(self, words: _LastWords | None, seconds: float, *, task_status: TaskStatus[Any]) -> None:
        """A connection from its start to its end: both have to happen in the same task."""
        stop, faults = anyio.Event(), list[str]()
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
            try:
                async with Client(self._checked(self._transport(words), faults), cache=None) as client:
                    tools = await _listed_tools(client, faults)
                    scope.deadline = math.inf
                    task_status.started((client, tools, faults, stop))
                    await stop.wait()
            except BaseExceptionGroup as group:  # anything but an Exception would end the loop
                raise ConnectionError(error_reason(group)) from group
        if scope.cancelled_caught:
            raise TimeoutError(f"no connection within {seconds:.3g} s")

    @asynccontextmanager
    async def _checked(self, transport: AbstractAsyncContextManager[Any], faults: list[str]) -> AsyncIterator[Any]:
        async with transport as (read, write):
            yield CheckedStream(read, faults), write

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
        """A transport without time limits of its own: a limit that it met would end the connection, not the request."""
        async with (
            httpx2.AsyncClient(
                headers=self._headers,
                transport=LimitedTransport(
                    verify=self._tls or True,
                    limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
                ),
                timeout=None,
            ) as http,
            streamable_http_client(self._server.url, http_client=http) as streams,
        ):
            yield streams


@dataclass(frozen=True)
class Connection:
    """A client that has shaken hands with its server. Several threads may use it at once."""

    tools: Mapping[str, Tool]
    """The server's tools by the names that a model calls them by."""
    faults: Sequence[str]
    """What is wrong with the tools that were left out."""
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


async def _listed_tools(client: Client, faults: list[str]) -> dict[str, Tool]:
    """All pages of the server's tools, by the names that a model calls them by."""
    page = await client.list_tools()
    tools = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        tools += page.tools
    return usable_tools(tools, faults)


def _filled(values: Mapping[str, str], field: str, secrets: set[str]) -> dict[str, str]:
    """The values with ${NAME} replaced from our own environment, so that no secret has to stand in a file.

    What was put in is added to `secrets`, unless it is the path of something that exists.
    """
    try:
        for value in values.values():
            used = {os.environ[name] for name in Template(value).get_identifiers()}
            secrets |= {text for text in used if not (text.startswith("/") and Path(text).exists())}
        return {name: Template(value).substitute(os.environ) for name, value in values.items()}
    except KeyError as error:
        raise ConfigError(f"tools.mcp.{field}: the environment variable {error} is not set") from None
    except ValueError as error:
        raise ConfigError(f"tools.mcp.{field}: {error}; write ${{NAME}} for a variable and $$ for a $") from None
