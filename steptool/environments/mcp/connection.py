"""Connections to an MCP server, each in one task of an event loop that runs in a thread of its own.

Every message over the standard input and output of a server's process has a limit of size. (The library's own
transport keeps what a server writes until the line ends, however long it is.)
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, TextIO

import anyio
import httpx2
from anyio.abc import Process, TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import Client, Tool
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.os.posix.utilities import terminate_posix_process_tree
from mcp.shared.message import SessionMessage
from mcp.types import INTERNAL_ERROR, CallToolResult, ErrorData, JSONRPCError, jsonrpc_message_adapter

from steptool.config import McpConfig
from steptool.config.base import ConfigError
from steptool.environments.base import TransportError
from steptool.environments.mcp.safeguards import LARGEST, CheckedStream, LimitedTransport, error_reason, usable_tools
from steptool.storage.redaction import Redactor

Item = SessionMessage | Exception
"""What the library takes from a transport: a message, or why no message came."""
_EXIT_SECONDS = 2.0
"""Seconds that a server has to end by itself when its input is closed, and then again when it is told to."""
_FLUSH = 0.5
"""Seconds for the last messages to be written."""
_POLL = 0.01
"""Seconds between two looks at whether a process has ended."""
_HEAD = 256
"""Bytes of a message that is too long in which its id is looked for."""
_ID = re.compile(rb'"id"\s*:\s*(\d{1,18})\b')
_CLOSED = (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError)


class MessageReader:
    """Cuts a stream of bytes into messages, one a line. Memory holds no more than LARGEST bytes of a line."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Item]:
        """The messages that a chunk ends; one that is too long becomes an error at once."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield from self._extend(end)
            if self._size <= LARGEST:
                yield _parse(b"".join(self._parts))
            self._parts, self._size = [], 0
        yield from self._extend(rest)

    def _extend(self, part: bytes) -> Iterator[Item]:
        fitted = self._size <= LARGEST
        self._size += len(part)
        if self._size <= LARGEST:
            self._parts.append(part)
        elif fitted:
            head = b"".join([*self._parts, part[:_HEAD]])[:_HEAD]
            self._parts = []
            yield _refuse(head)


def _parse(line: bytes) -> Item:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line.decode("utf-8", "replace"), by_name=False))
    except ValueError as error:
        return error


def _refuse(head: bytes) -> Item:
    """In place of an answer that is too long: an error as the answer to its request, if the id can be read."""
    reason = f"the answer is longer than {LARGEST >> 20} MiB"
    if request := _ID.search(head):
        error = ErrorData(code=INTERNAL_ERROR, message=reason)
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=int(request[1]), error=error))
    return ValueError(reason)


@asynccontextmanager
async def open_stdio(
    command: Sequence[str], env: Mapping[str, str], error_output: TextIO
) -> AsyncIterator[tuple[MemoryObjectReceiveStream[Item], MemoryObjectSendStream[SessionMessage]]]:
    """Start a server and yield a stream of its messages and one for ours. On exit, end its process and its children.

    Raises OSError if the server cannot be started.
    """
    process = await anyio.open_process(
        list(command),
        env={**get_default_environment(), **env},
        stderr=error_output,
        start_new_session=True,
    )
    incoming, read = anyio.create_memory_object_stream[Item](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    flushed = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_receive, process, incoming)
        group.start_soon(_send, process, outgoing, incoming, flushed)
        try:
            yield read, write
        finally:
            with anyio.CancelScope(shield=True):  # otherwise the server would outlive this process
                read.close()
                write.close()
                with anyio.move_on_after(_FLUSH):
                    await flushed.wait()
                await _end(process)
            group.cancel_scope.cancel()


async def _receive(process: Process, incoming: MemoryObjectSendStream[Item]) -> None:
    """Pass messages on. After the reader has closed, read and drop what the server still writes, so that it can end."""
    assert process.stdout
    reader = MessageReader()
    with suppress(*_CLOSED):
        async with incoming:
            with suppress(*_CLOSED):
                async for chunk in process.stdout:
                    for item in reader.feed(chunk):
                        await incoming.send(item)
        async for _ in process.stdout:
            pass


async def _send(
    process: Process,
    outgoing: MemoryObjectReceiveStream[SessionMessage],
    incoming: MemoryObjectSendStream[Item],
    flushed: anyio.Event,
) -> None:
    """Write messages. End the connection to a server that takes none, so that no request waits for it."""
    assert process.stdin
    try:
        async with outgoing:
            async for item in outgoing:
                await process.stdin.send(
                    (item.message.model_dump_json(by_alias=True, exclude_unset=True) + "\n").encode()
                )
    except _CLOSED:
        await incoming.aclose()
    finally:
        flushed.set()


async def _end(process: Process) -> None:
    """Close the input of the process, wait, then end it and its children, at last by force."""
    assert process.stdin and process.stdout
    with suppress(*_CLOSED):
        await process.stdin.aclose()
    if not await _has_ended(process):
        await terminate_posix_process_tree(process, _EXIT_SECONDS)
        await _has_ended(process)
    with suppress(*_CLOSED):
        await process.stdout.aclose()


async def _has_ended(process: Process) -> bool:
    """Whether the process ends in time. (`wait` would wait for children that have inherited its pipes too.)"""
    with anyio.move_on_after(_EXIT_SECONDS):
        while process.returncode is None:
            await anyio.sleep(_POLL)
    return process.returncode is not None


_CHARACTERS = 300
"""Characters of the end of a server's error output that are kept."""
_PATIENCE = 0.5
"""Seconds to wait for the last lines of a server that has ended."""


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

    def connect(self, seconds: float) -> Connection:
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
            raise TransportError(self.redactor.text(f"{self.address}: {error_reason(error)}{last_lines}")) from error
        finally:
            if error_output:
                error_output.file.close()
        return Connection(tools, faults, self._portal, client, stop, end, error_output)

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
                async with Client(self._check_lists(self._transport(error_output), faults), cache=None) as client:
                    tools = await _list_tools(client, faults)
                    scope.deadline = math.inf
                    task_status.started((client, tools, faults, stop))
                    await stop.wait()
            except BaseExceptionGroup as group:  # anything but an Exception would end the loop
                raise ConnectionError(error_reason(group)) from group
        if scope.cancelled_caught:
            raise TimeoutError(f"no connection within {seconds:.3g} s")

    @asynccontextmanager
    async def _check_lists(self, transport: AbstractAsyncContextManager[Any], faults: list[str]) -> AsyncIterator[Any]:
        async with transport as (receive, write):
            yield CheckedStream(receive, faults), write

    def _transport(self, error_output: _ErrorOutput | None) -> AbstractAsyncContextManager[Any]:
        if error_output is None:
            return self._http()
        program, *arguments = self._server.command
        command = [sys.executable if program == "python" else program, *arguments]
        return open_stdio(command, self._env, error_output.file)

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[Any]:
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
class Connection:
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
        finished, _ = wait([self._ended], seconds)
        return self._error_output.take() if finished and self._error_output else ""


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
    return usable_tools(tools, faults)


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
