"""The tools of ToolBench as an environment: recorded responses first, then a server if the configuration names one.

The server speaks the `/virtual` protocol of StableToolBench and ToolBench: names of APIs and functions, and the text of
an answer with the status that it stands for. The command fills a file of recorded responses from recorded trajectories,
so that runs work without a server:

    python -m steptool.environments.toolbench build responses.sqlite runs/first runs/second
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import httpx2

from steptool.config import ToolBenchConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, ToolResult, TransportError
from steptool.environments.replay import (
    NEVER_RECORDED,
    UNKNOWN_FUNCTION,
    ReplaySession,
    Responses,
    fail_unrecorded,
    list_answered_calls,
    make_call_key,
    write_protocol_error,
)
from steptool.records import Query, StepStatus, ToolCall, Trajectory
from steptool.records.columns import ContractError
from steptool.records.episodes import read_queries
from steptool.records.tables import find_record_class, read_records
from steptool.storage.http import Redactor

NAME_LIMIT = 64
REFERENCE = "toolbench"
"""Key of `Query.reference.environment` that names the API of each function: {function name: [category, tool name, API
name]}."""
Endpoint = tuple[str, str, str]
"""Category, tool name and API name, as a request writes them."""
_RESERVED = frozenset({"from", "class", "return", "false", "true", "id", "and"})
TIMEOUT = "Timeout error..."
BAD_REPLY = "request invalid, data error"
"""ToolBench's own client gives these two in place of a server's answer."""
_UNREADABLE = "Tool input parse error"
_ERROR_FIELD = re.compile(r'\s*\{\s*"error"\s*:\s*"((?:[^"\\]|\\.)*)')
_FAILURE = re.compile(
    r"""["']?status(?:_?code)?["']?\s*:\s*["']?[45]\d\d\b|unauthori[sz]ed|authentication (?:failed|required|error)"""
    r"|not subscribed|too many requests|rate limit|quota|timed? ?out|internal server error|bad gateway|page not found",
    re.IGNORECASE,
)
_LONGEST_FAILURE = 400
"""Most characters of a response that can be a failure. A longer one is content, whatever words it contains."""
_LARGEST = 8 << 20
"""Bytes of a reply that are read."""
_TRY_AGAIN = (429, 502, 503, 504)
"""HTTP statuses with which a server says that it did not take the request."""
_KEPT_OPEN = 64
"""Idle connections kept for later calls."""


@lru_cache(1 << 16)
def standardise_name(text: str) -> str:
    """A tool's, API's or parameter's name as ToolBench writes it: lower case, one `_` for each run of other characters.

    Chinese characters and `^` are kept, as in ToolBench's own rule.
    """
    name = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9^\u4e00-\u9fa5]", "_", text)).lower().strip("_")
    return f"get_{name}" if name[:1].isdigit() else name


def avoid_reserved(name: str) -> str:
    """The name, with `is_` before it if ToolBench reserves it, such as `id` and `from`."""
    return f"is_{name}" if name in _RESERVED else name


@lru_cache(1 << 16)
def standardise_parameter(name: str) -> str:
    """A parameter's name in standard form, or unchanged if its standard form is empty."""
    return avoid_reserved(standardise_name(name)) or name


@lru_cache(1 << 16)
def make_function_name(api_name: str, tool_name: str) -> str:
    """Name of the function for an API of a tool: the last 64 characters of `<api>_for_<tool>`."""
    name = f"{avoid_reserved(standardise_name(api_name))}_for_{standardise_name(tool_name)}"
    return re.sub(r"[^a-z0-9_]", "_", name)[-NAME_LIMIT:]


def make_endpoint(category: str, tool_name: str, api_name: str) -> Endpoint:
    """The names in a request of ToolBench's client: the category unchanged, tool and API in standard form."""
    return category, standardise_name(tool_name), avoid_reserved(standardise_name(api_name))


def list_endpoints(query: Query) -> dict[str, Endpoint]:
    """The endpoint of each function of the query; empty where the query does not name them.

    It cannot be derived from the name: `_for_` may be part of a tool's name, long names are cut, and no name has the
    category. Raises ValueError if the query's reference is of another form.
    """
    return {
        name: _parse_endpoint(query.query_id, name, parts)
        for name, parts in query.reference.environment.get(REFERENCE, {}).items()
    }


def _parse_endpoint(query_id: str, name: str, parts: Any) -> Endpoint:
    match parts:
        case [str(category), str(tool_name), str(api_name)]:
            return category, tool_name, api_name
    raise ValueError(
        f"query {query_id}: reference.{REFERENCE}.{name}: expected [category, tool name, API name], got {parts!r}"
    )


def read_status(observation: str) -> StepStatus:
    """The status of a call, read from the protocol's text, which may be cut off.

    A non-empty `error` is a failure. So is a short response with an HTTP error status or the words of one.
    """
    document = _parse_observation(observation)
    error = _write_text(document.get("error"))
    if error.startswith(UNKNOWN_FUNCTION):
        return StepStatus.UNKNOWN_TOOL
    if error.startswith(_UNREADABLE):
        return StepStatus.INVALID_ARGUMENTS
    response = _write_text(document.get("response", document))
    is_failure = error or (len(response) <= _LONGEST_FAILURE and _FAILURE.search(response))
    return StepStatus.TOOL_ERROR if is_failure else StepStatus.OK


def is_from_server(observation: str) -> bool:
    """Whether the text comes from a server, and not from a client, a limit or a replay in its place."""
    document = _parse_observation(observation)
    error = _write_text(document.get("error"))
    is_own_error = error in (NEVER_RECORDED, TIMEOUT) or error.startswith(BAD_REPLY)
    return "response" in document and not is_own_error


def _parse_observation(observation: str) -> dict[str, Any]:
    try:
        document = json.loads(observation)
    except (ValueError, RecursionError):
        match = _ERROR_FIELD.match(observation)
        document = {"error": match.group(1) if match else "", "response": observation}
    return document if isinstance(document, dict) else {"response": document}


def _write_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class VirtualClient:
    """Client of a server of StableToolBench or ToolBench. Threads may share it: each call uses its own connection."""

    def __init__(self, url: str, key: str, strip: str, timeout: float) -> None:
        """`url` with its path, as in http://localhost:8080/virtual; `timeout` in seconds. Raises ValueError."""
        self._url, self._key, self._strip, self._timeout = _parse_address(url), key, strip, timeout
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
            return ToolResult(StepStatus.TOOL_ERROR, write_protocol_error(TIMEOUT))
        except httpx2.TransportError as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        except httpx2.DecodingError as error:
            return _fail(f"{BAD_REPLY}: {error}")
        if status in _TRY_AGAIN:
            raise TransportError(f"HTTP status {status}")
        if status != 200:
            invalid = StepStatus.INVALID_ARGUMENTS if status == 422 else StepStatus.TOOL_ERROR
            return ToolResult(invalid, write_protocol_error(f"{BAD_REPLY}. status_code={status}"))
        return self._make_result(body)

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

    def _make_result(self, body: bytes) -> ToolResult:
        """The whole reply, written again as JSON: ToolBench's client shows the model the same."""
        if len(body) > _LARGEST:
            return _fail(f"{BAD_REPLY}: more than {_LARGEST >> 20} MiB")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return _fail(f"{BAD_REPLY}: not JSON")
        if not isinstance(document, dict) or not {"error", "response"} <= document.keys():
            return _fail(f"{BAD_REPLY}: no object with the fields error and response")
        observation = json.dumps(self._redactor.redact_value(document))
        return ToolResult(read_status(observation), observation)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _parse_address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
        if address.scheme in ("http", "https") and address.host:
            return address
    except httpx2.InvalidURL:
        pass
    raise ValueError(f"expected an address such as http://localhost:8080/virtual, got '{url}'")


def _fail(reason: str) -> ToolResult:
    return ToolResult(StepStatus.TOOL_ERROR, write_protocol_error(reason))


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
        return cls(_open_client(settings, tools.timeout), _open_responses(settings))

    def __init__(self, client: VirtualClient | None, responses: Responses | None) -> None:
        self._client, self._responses = client, responses
        self.blocking = client is not None

    def reset(self, query: Query) -> ReplaySession:
        """A session for the query."""
        names = list_endpoints(query)
        return ReplaySession(query, partial(self._look_up, names), partial(self._ask, names))

    def _look_up(self, names: Mapping[str, Endpoint], call: ToolCall) -> ToolResult | None:
        return None if self._responses is None else self._responses.get(make_response_key(names, call))

    def _ask(self, names: Mapping[str, Endpoint], call: ToolCall) -> ToolResult:
        if self._client is None:
            return fail_unrecorded(call)
        if call.name not in names:
            problem = f"The task does not say which API {call.name} is."
            return ToolResult(StepStatus.TOOL_ERROR, write_protocol_error(problem))
        result = self._client.ask(names[call.name], call.arguments)
        if self._responses is None or result.status is not StepStatus.OK:
            return result
        self._responses.add([(make_response_key(names, call), result)])
        return self._responses.get(make_response_key(names, call)) or result

    def close(self) -> None:
        """Close the connections and the file of recorded responses."""
        if self._client is not None:
            self._client.close()
        if self._responses is not None:
            self._responses.close()


def make_response_key(names: Mapping[str, Endpoint], call: ToolCall) -> str:
    """Key of a call in the recorded responses: category, tool and API, or the function's name if the query has none."""
    return make_call_key(names.get(call.name, (call.name,)), call.arguments)


def _open_client(settings: ToolBenchConfig, timeout: float) -> VirtualClient | None:
    if not settings.url:
        return None
    key = os.environ.get(settings.key_variable, "").strip()
    try:
        return VirtualClient(settings.url, key, settings.strip, timeout)
    except ValueError as error:
        raise ConfigError(f"tools.toolbench: {error}") from None


def _open_responses(settings: ToolBenchConfig) -> Responses | None:
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


def list_recorded_responses(
    queries: Iterable[Query], trajectories: Iterable[Trajectory]
) -> Iterator[tuple[str, ToolResult]]:
    """The servers' responses in trajectories of these queries, failures too, each with the key of its call."""
    endpoints_of_query = {query.query_id: list_endpoints(query) for query in queries}
    for trajectory in trajectories:
        for call, result in list_answered_calls(trajectory):
            if trajectory.query_id in endpoints_of_query and is_from_server(result.observation):
                yield make_response_key(endpoints_of_query[trajectory.query_id], call), result


def build(file: str | Path, folders: Sequence[str | Path]) -> tuple[int, int]:
    """Add the recorded calls in folders of runs or of ingests. If one folder fails, none is added.

    Each folder holds a Parquet file of queries and files of their trajectories. Calls are recorded in the order of the
    folders, and within a folder in the order of the files' names. Returns the number of responses added and the number
    of calls that the file then answers. Raises ContractError naming the folder that has no queries or trajectories.
    """
    contents = [_read_folder(Path(folder)) for folder in folders]
    responses = Responses(file)
    try:
        count = responses.add(
            pair for queries, trajectories in contents for pair in list_recorded_responses(queries, trajectories)
        )
        return count, responses.calls()
    finally:
        responses.close()


def _read_folder(folder: Path) -> tuple[list[Query], Iterator[Trajectory]]:
    files = [(path, find_record_class(path)) for path in sorted(folder.glob("*.parquet"))]
    queries = [query for path, cls in files if cls is Query for query in read_queries(path)]
    trajectory_files = [path for path, cls in files if cls is Trajectory]
    if not queries or not trajectory_files:
        raise ContractError(
            f"{folder}: expected Parquet files of queries and of trajectories; name the folder of a run or an ingest"
        )
    return queries, (trajectory for path in trajectory_files for trajectory in read_records(path, Trajectory))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the command line."""
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
