"""Messages over the standard input and output of a server's process, each within a limit of size.

(The library's own transport keeps what a server writes until the line ends, however long it is.)
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TextIO

import anyio
from anyio.abc import Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.os.posix.utilities import terminate_posix_process_tree
from mcp.shared.message import SessionMessage
from mcp.types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

from steptool.environments.mcp.safeguards import LARGEST

Item = SessionMessage | Exception
"""What the library takes from a transport: a message, or why no message came."""
_PATIENCE = 2.0
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
    """Start a server; the streams of its messages and of ours. In the end its process and their children end.

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
            with anyio.CancelScope(shield=True):  # or a process would outlive us
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
    """Write messages. A server that takes none has its connection ended, so that no request waits for it."""
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
        await terminate_posix_process_tree(process, _PATIENCE)
        await _has_ended(process)
    with suppress(*_CLOSED):
        await process.stdout.aclose()


async def _has_ended(process: Process) -> bool:
    """Whether the process ends in time. (`wait` would wait for children that have inherited its pipes too.)"""
    with anyio.move_on_after(_PATIENCE):
        while process.returncode is None:
            await anyio.sleep(_POLL)
    return process.returncode is not None
