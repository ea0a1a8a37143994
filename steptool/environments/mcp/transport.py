"""Transports to MCP servers: messages have a size limit, and of a list only the faulty tools are left out.

The library's own transport keeps what a server writes to its standard output until the line ends, however long it is.
Over HTTP it reads answers whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TextIO

import anyio
import httpx2
from anyio.abc import Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import Tool
from mcp.client.stdio import get_default_environment
from mcp.os.posix.utilities import terminate_posix_process_tree
from mcp.shared.message import SessionMessage
from mcp.types import INTERNAL_ERROR, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter
from pydantic import ValidationError

from steptool.chat.messages import annotate_tool
from steptool.environments.mcp.answers import MESSAGE, describe_cause, describe_form
from steptool.environments.schema import SchemaError, check_tools
from steptool.records import ToolSchema

LARGEST = 8 << 20
"""Bytes of an answer that are read."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_NAME_LIMIT = 64
_FIELDS = ("name", "title", "description", "inputSchema", "annotations")
"""Fields of a tool that are used."""
_LISTED = "the server's list of tools"
Item = SessionMessage | Exception
"""What the library takes from a transport: a message, or why no message came."""
_EXIT_SECONDS = 2.0
"""Seconds that a server has to end by itself when its input is closed, and then again when it is told to."""
_FLUSH = 0.5
"""Seconds for the last messages to be written."""
_POLL = 0.01
"""Seconds between two checks of whether a process has ended."""
_HEAD = 256
"""Bytes at the beginning of a message that is too long; they are searched for its id."""
_ID = re.compile(rb'"id"\s*:\s*(\d{1,18})\b')
_CLOSED = (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError)


class LimitedTransport(httpx2.AsyncHTTPTransport):
    """HTTP whose answers have a size limit. It asks for answers that are not compressed and refuses others.

    (The library reads answers whole, and a megabyte of gzip can become gigabytes. Event streams have a limit for each
    event in the library.)
    """

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response, or an error of the protocol that says why the response is not read."""
        request.headers["accept-encoding"] = "identity"
        response = await super().handle_async_request(request)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        length = response.headers.get("content-length", "")
        if encoding != "identity":
            return await _refuse(response, f"the server compresses its answers ({encoding}) without being asked to")
        if length.isdigit() and int(length) > LARGEST:
            return await _refuse(response, f"the answer is longer than {LARGEST >> 20} MiB")
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _LimitedStream(response.stream)
        return response


class _LimitedStream(httpx2.AsyncByteStream):
    """A body that ends in an error after LARGEST bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > LARGEST:
                raise httpx2.StreamError(f"the answer is longer than {LARGEST >> 20} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _refuse(response: httpx2.Response, reason: str) -> httpx2.Response:
    await response.aclose()
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": reason}}
    return httpx2.Response(502, headers={"content-type": "application/json"}, content=json.dumps(error))


class CheckedStream:
    """The messages of a server, in which lists of tools hold only tools that the library can read.

    The library refuses a whole list for one bad entry. It would also check results against a tool's output schema,
    which may take for ever, so these schemas are left out. `faults` says what was dropped.
    """

    def __init__(self, stream: Any, faults: list[str]) -> None:
        self._stream, self._faults = stream, faults

    async def receive(self) -> SessionMessage | Exception:
        """The next message."""
        return self._check(await self._stream.receive())

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return self._check(await self._stream.__anext__())

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        suppress: bool | None = await self._stream.__aexit__(kind, error, trace)
        return suppress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _check(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        if isinstance(item, Exception) or not isinstance(item.message, JSONRPCResponse):
            return item
        result = item.message.result
        if not isinstance(result.get("tools"), list) or "content" in result:
            return item
        tools = [readable for tool in result["tools"] if (readable := self._convert_tool(tool)) is not None]
        return replace(item, message=item.message.model_copy(update={"result": {**result, "tools": tools}}))

    def _convert_tool(self, tool: Any) -> dict[str, Any] | None:
        name = tool.get("name") if isinstance(tool, dict) else tool
        try:
            kind = Tool.model_validate(tool, by_name=False).input_schema.get("type")
        except ValidationError as error:
            problem = describe_cause(error)
        else:
            if kind == "object":
                return {field: tool[field] for field in _FIELDS if field in tool}
            problem = f'inputSchema.type: expected "object", got {kind!r}'
        self._faults.append(f"tool {str(name)[:80]!r}: {problem}")
        return None


def convert_tool(name: str, tool: Tool) -> ToolSchema:
    """A server's tool in OpenAI's form, with the server's hint whether it only reads."""
    declaration = {"name": name, "description": tool.description or tool.title or "", "parameters": tool.input_schema}
    hint = tool.annotations.read_only_hint if tool.annotations else None
    return annotate_tool({"type": "function", "function": declaration}, hint)


def select_usable_tools(tools: Sequence[Tool], faults: list[str]) -> dict[str, Tool]:
    """The tools whose schemas can be used, by distinct names that a model can call; `faults` says what was dropped.

    Names keep letters, digits, '_' and '-'. Where two become the same, the later ones get numbers: read, read_2.
    """
    by_name: dict[str, Tool] = {}
    for tool in tools:
        name = _make_distinct_name(_NOT_IN_NAMES.sub("_", tool.name) or "_", by_name)
        try:
            check_tools([convert_tool(name, tool)], _LISTED)
        except SchemaError as error:
            faults.append(f"tool {tool.name[:80]!r}: {str(error).removeprefix(f'{_LISTED}: tools[0].')}")
            continue
        by_name[name] = tool
    return by_name


def _make_distinct_name(name: str, used: Iterable[str]) -> str:
    names, number, distinct = set(used), 1, name[:_NAME_LIMIT]
    while distinct in names:
        number += 1
        ending = f"_{number}"
        distinct = name[: _NAME_LIMIT - len(ending)] + ending
    return distinct


class MessageReader:
    """Cuts a stream of bytes into messages, one per line. Memory holds at most LARGEST bytes of a line."""

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
            yield _refuse_line(head)


def _parse(line: bytes) -> Item:
    text = line.decode("utf-8", "replace")
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except ValueError as error:
        return _refuse_form(text) or error


def _refuse_form(text: str) -> Item | None:
    """In place of an answer that is no message: an error as the answer to its request; None without an id."""
    with suppress(ValueError, RecursionError):
        message = json.loads(text)
        if isinstance(message, dict) and isinstance(message.get("id"), int) and "method" not in message:
            error = ErrorData(code=PARSE_ERROR, message=describe_form(MESSAGE, message))
            return SessionMessage(JSONRPCError(jsonrpc="2.0", id=message["id"], error=error))
    return None


def _refuse_line(head: bytes) -> Item:
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
    with anyio.CancelScope(shield=True):  # a start that is cancelled would leave a process that nobody waits for
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
