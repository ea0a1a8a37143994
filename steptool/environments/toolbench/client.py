"""Client of the `/virtual` protocol: one POST request a call."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from steptool.environments.base import ToolResult, TransportError
from steptool.environments.toolbench.protocol import BAD_REPLY, TIMEOUT, Endpoint, observation_status, protocol_error
from steptool.records import StepStatus
from steptool.storage.redaction import Redactor

_LARGEST = 8 << 20
"""Bytes of a reply that are read."""
_TRY_AGAIN = (429, 502, 503, 504)
"""HTTP statuses with which a server says that it did not take the request."""
_KEPT_OPEN = 64
"""Idle connections kept for later calls."""


class VirtualClient:
    """Client of a server of StableToolBench or ToolBench. Threads may share it: each call uses its own connection."""

    def __init__(self, url: str, key: str, strip: str, timeout: float) -> None:
        """`url` with its path, as in http://localhost:8080/virtual; `timeout` in seconds. Raises ValueError."""
        self._url, self._key, self._strip, self._timeout = _address(url), key, strip, timeout
        if not (key.isascii() and key.isprintable()):
            raise ValueError("expected a key of printable ASCII characters")
        self._redactor = Redactor([key])
        limits = httpx2.Limits(max_keepalive_connections=_KEPT_OPEN)
        self._client = httpx2.Client(headers={"toolbench_key": key}, timeout=timeout, limits=limits)

    def ask(self, endpoint: Endpoint, arguments: Mapping[str, Any]) -> ToolResult:
        """The server's answer. Raises TransportError where it did not take the request or the answer was lost."""
        try:
            status, body = self._answer(self._request(endpoint, arguments))
        except httpx2.ReadTimeout:
            return ToolResult(StepStatus.TOOL_ERROR, protocol_error(TIMEOUT))
        except httpx2.TransportError as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        except httpx2.DecodingError as error:
            return _fail(f"{BAD_REPLY}: {error}")
        if status in _TRY_AGAIN:
            raise TransportError(f"HTTP status {status}")
        if status != 200:
            invalid = StepStatus.INVALID_ARGUMENTS if status == 422 else StepStatus.TOOL_ERROR
            return ToolResult(invalid, protocol_error(f"{BAD_REPLY}. status_code={status}"))
        return self._result(body)

    def _request(self, endpoint: Endpoint, arguments: Mapping[str, Any]) -> dict[str, str]:
        category, tool_name, api_name = endpoint
        return {
            "category": category,
            "tool_name": tool_name,
            "api_name": api_name,
            "tool_input": json.dumps(dict(arguments)),
            "strip": self._strip,
            "toolbench_key": self._key,
        }

    def _answer(self, request: dict[str, str]) -> tuple[int, bytes]:
        """The reply; asked for over a new connection where the server has closed one that was kept for later calls."""
        try:
            return self._post(self._client, request)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            with httpx2.Client(headers=self._client.headers, timeout=self._timeout) as fresh:
                return self._post(fresh, request)

    def _post(self, client: httpx2.Client, request: dict[str, str]) -> tuple[int, bytes]:
        deadline = time.monotonic() + self._timeout
        body = bytearray()
        with client.stream("POST", self._url, json=request) as reply:
            if reply.status_code != 200:  # what is not read closes the connection, which servers may do after an error
                return reply.status_code, b""
            for chunk in reply.iter_bytes():
                body += chunk
                if len(body) > _LARGEST:
                    break
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the reply did not end in time")
        return reply.status_code, bytes(body)

    def _result(self, body: bytes) -> ToolResult:
        """The whole reply, written again as JSON: ToolBench's client shows the model the same."""
        if len(body) > _LARGEST:
            return _fail(f"{BAD_REPLY}: more than {_LARGEST >> 20} MiB")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return _fail(f"{BAD_REPLY}: not JSON")
        if not isinstance(document, dict) or not {"error", "response"} <= document.keys():
            return _fail(f"{BAD_REPLY}: no object with the fields error and response")
        observation = json.dumps(self._redactor.value(document))
        return ToolResult(observation_status(observation), observation)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
        if address.scheme in ("http", "https") and address.host:
            return address
    except httpx2.InvalidURL:
        pass
    raise ValueError(f"expected an address such as http://localhost:8080/virtual, got '{url}'")


def _fail(reason: str) -> ToolResult:
    return ToolResult(StepStatus.TOOL_ERROR, protocol_error(reason))
