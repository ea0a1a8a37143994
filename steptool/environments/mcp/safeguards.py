"""Safeguards against bad servers: answers have a size limit, and only the faulty tools of a list are left out."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx2
from mcp import Tool
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCResponse
from pydantic import ValidationError

from steptool.chat.messages import annotate_tool
from steptool.environments.schema import SchemaError, check_tools
from steptool.records import ToolSchema

LARGEST = 8 << 20
"""Bytes of an answer that are read."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_NAME_LIMIT = 64
_FIELDS = ("name", "title", "description", "inputSchema", "annotations")
"""Fields of a tool that are used."""
_LISTED = "the server's list of tools"


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
        tools = [readable for tool in result["tools"] if (readable := self._readable(tool)) is not None]
        return replace(item, message=item.message.model_copy(update={"result": {**result, "tools": tools}}))

    def _readable(self, tool: Any) -> dict[str, Any] | None:
        name = tool.get("name") if isinstance(tool, dict) else tool
        try:
            kind = Tool.model_validate(tool, by_name=False).input_schema.get("type")
        except ValidationError as error:
            problem = error_reason(error)
        else:
            if kind == "object":
                return {field: tool[field] for field in _FIELDS if field in tool}
            problem = f'inputSchema.type: expected "object", got {kind!r}'
        self._faults.append(f"tool {str(name)[:80]!r}: {problem}")
        return None


def tool_schema(name: str, tool: Tool) -> ToolSchema:
    """A server's tool in OpenAI's form, with the server's hint whether it only reads."""
    declaration = {"name": name, "description": tool.description or tool.title or "", "parameters": tool.input_schema}
    hint = tool.annotations.read_only_hint if tool.annotations else None
    return annotate_tool({"type": "function", "function": declaration}, hint)


def usable_tools(tools: Sequence[Tool], faults: list[str]) -> dict[str, Tool]:
    """The tools whose schemas can be used, by distinct names that a model can call; `faults` says what was dropped.

    Names keep letters, digits, '_' and '-'. Where two become the same, the later ones get numbers: read, read_2.
    """
    by_name: dict[str, Tool] = {}
    for tool in tools:
        name = _distinct_name(_NOT_IN_NAMES.sub("_", tool.name) or "_", by_name)
        try:
            check_tools([tool_schema(name, tool)], _LISTED)
        except SchemaError as error:
            faults.append(f"tool {tool.name[:80]!r}: {str(error).removeprefix(f'{_LISTED}: tools[0].')}")
            continue
        by_name[name] = tool
    return by_name


def _distinct_name(name: str, used: Iterable[str]) -> str:
    names, number, distinct = set(used), 1, name[:_NAME_LIMIT]
    while distinct in names:
        number += 1
        ending = f"_{number}"
        distinct = name[: _NAME_LIMIT - len(ending)] + ending
    return distinct


def error_reason(error: BaseException) -> str:
    """The first cause of an error, whole, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
    return " ".join(str(error).split()) or type(error).__name__
