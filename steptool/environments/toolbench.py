"""The tools of ToolBench as an environment: recorded responses first, then a server if the configuration names one.

The server speaks the `/virtual` protocol of StableToolBench and ToolBench. The command fills a file of recorded
responses from recorded trajectories, so that runs work without a server:

    python -m steptool.environments.toolbench build responses.sqlite runs/first runs/second
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx2

from steptool.config import ToolBenchConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, ToolResult, TransportError
from steptool.environments.replay import ReplaySession, Responses, answered_calls, call_key, fail_unrecorded
from steptool.environments.virtual_protocol import (
    BAD_REPLY,
    TIMEOUT,
    Endpoint,
    endpoints,
    from_server,
    observation_status,
    protocol_error,
)
from steptool.records import Query, StepStatus, ToolCall, Trajectory
from steptool.records.columns import ContractError
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, record_class
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


class ToolBenchEnvironment(Environment):
    """Answers calls from recorded responses, from a server, or from both, where recorded responses come first.

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
            "python -m steptool.environments.toolbench, or give a url to fill it"
        )
    try:
        return Responses(settings.cache)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"tools.toolbench.cache: '{settings.cache}' cannot be opened: {error}") from None


def record(responses: Responses, queries: Iterable[Query], trajectories: Iterable[Trajectory]) -> int:
    """Add the servers' responses in trajectories of these queries, failures too. Returns the number added."""
    return responses.add(_recorded_responses(queries, trajectories))


def _recorded_responses(
    queries: Iterable[Query], trajectories: Iterable[Trajectory]
) -> Iterator[tuple[str, ToolResult]]:
    endpoints_of_query = {query.query_id: endpoints(query) for query in queries}
    for trajectory in trajectories:
        for call, result in answered_calls(trajectory):
            if trajectory.query_id in endpoints_of_query and from_server(result.observation):
                yield response_key(endpoints_of_query[trajectory.query_id], call), result


def build(file: str | Path, folders: Sequence[str | Path]) -> tuple[int, int]:
    """Add the recorded calls in folders of runs or of ingests. If one folder fails, none is added.

    Each folder holds a Parquet file of queries and any of their trajectories; They are recorded in the order of the
    folders, and in a folder in the order of the files' names. Returns the number of responses added and the number of
    calls that the file then answers. Raises ContractError naming the folder that has no queries or trajectories.
    """
    contents = [_contents(Path(folder)) for folder in folders]
    responses = Responses(file)
    try:
        added = responses.add(
            pair for queries, trajectories in contents for pair in _recorded_responses(queries, trajectories)
        )
        return added, responses.calls()
    finally:
        responses.close()


def _contents(folder: Path) -> tuple[list[Query], Iterator[Trajectory]]:
    files = [(path, record_class(path)) for path in sorted(folder.glob("*.parquet"))]
    queries = [query for path, cls in files if cls is Query for query in read_queries(path)]
    trajectory_files = [path for path, cls in files if cls is Trajectory]
    if not queries or not trajectory_files:
        raise ContractError(
            f"{folder}: expected Parquet files of queries and of trajectories; name the folder of a run or an ingest"
        )
    return queries, (trajectory for path in trajectory_files for trajectory in read_records(path, Trajectory))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m steptool.environments.toolbench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="add the recorded calls of folders to a file")
    command.add_argument("file", help="file of recorded responses, made if it is missing")
    command.add_argument("folders", nargs="+", metavar="folder", help="folder of a run or an ingest")
    options = parser.parse_args(arguments)
    try:
        added, calls = build(options.file, options.folders)
    except (ContractError, OSError, sqlite3.Error) as error:
        sys.exit(str(error))
    print(f"{options.file}: {added} responses added, {calls} calls answered")


if __name__ == "__main__":
    main()
