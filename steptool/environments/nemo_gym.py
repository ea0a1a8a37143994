"""Resource servers of NeMo Gym: tools as HTTP routes, and a verdict from /verify on the whole conversation.

A row of a dataset is the task: it is sent to /seed_session at the beginning and to /verify at the end, with the turns
in the form of OpenAI's responses. The server knows the episode by its cookies. A server that hands out an MCP session
is called over MCP instead. The package nemo-gym is not needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import httpx2

from steptool.artifacts.errors import describe_with_class
from steptool.config import McpConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.adapters import (
    LimitedClient,
    RewardRange,
    find_split,
    join_instructions,
    make_tool,
    read_content_text,
    read_object_setting,
)
from steptool.environments.base import (
    Environment,
    Session,
    ToolResult,
    TransportError,
    VerdictError,
)
from steptool.environments.mcp.environment import McpEnvironment
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory

_ROW = "row"
"""Key of `Query.reference.environment` with the row of the dataset."""
_PARAMETERS = "responses_create_params"
"""Field of a row with the prompt and the tools, in the form of OpenAI's responses."""
_STATUSES = {404: StepStatus.UNKNOWN_TOOL, 405: StepStatus.UNKNOWN_TOOL, 422: StepStatus.INVALID_ARGUMENTS}
"""The status of a call by the HTTP status of its answer; any other error is a TOOL_ERROR."""
_UNUSABLE = (TransportError, RuntimeError, httpx2.HTTPError, httpx2.InvalidURL, TypeError, ValueError, AttributeError)
"""What goes wrong with a server that answers otherwise than NeMo Gym does."""


class NemoGymEnvironment(Environment):
    """The resource server at `url`. `timeout` is the limit on a call in seconds.

    `datasets` are JSONL files of rows by the split that they belong to, or a list of files whose tasks are split later.
    `reward_range` says which rewards mean not solved and solved. Raises ConfigError for a file that cannot be read.
    """

    name, blocking = "nemo_gym", True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The server that `tools.settings` names."""
        return super().open(tools.model_copy(update={"settings": {"timeout": tools.timeout, **tools.settings}}))

    def __init__(
        self,
        url: str,
        datasets: Mapping[str, str] | Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        reward_range: Sequence[float] = (0.0, 1.0),
        timeout: float = 30.0,
    ) -> None:
        self.url, self.timeout = url.rstrip("/"), 0.9 * timeout
        self.headers = read_object_setting(headers or {}, "headers")
        self.range = RewardRange.parse(list(reward_range))
        if isinstance(datasets, str):
            raise ConfigError(f"tools.settings.datasets: expected a list of files, or files by split, got '{datasets}'")
        files = datasets.items() if isinstance(datasets, Mapping) else (("", file) for file in datasets)
        self._files = [(split, Path(file)) for split, file in files]

    def tools(self) -> Sequence[ToolSchema]:
        """Raise ValueError, because each row lists its own tools or its session has them."""
        raise ValueError("each row of a NeMo Gym dataset lists its own tools: set data.source: environment")

    def tasks(self) -> Iterator[Mapping[str, Any]]:
        """The rows of the datasets. Where a row lists no tools, they are those of its MCP session.

        Raises ConfigError for a row of another form, and for a server that cannot be reached.
        """
        for split, file in self._files:
            for number, row in enumerate(_read_rows(file)):
                where = f"{file}, row {number + 1}"
                tools = _read_tools(row, where)
                yield {
                    "id": f"{file.stem}-{number}",
                    "instruction": _read_instruction(row, where),
                    "split": find_split(split),
                    "tools": tools or self._read_session_tools(row),
                    "reference": {_ROW: row},
                }

    def _read_session_tools(self, row: Mapping[str, Any]) -> list[ToolSchema]:
        try:
            with closing(NemoGymSession(self, row)) as session:
                return list(session.mcp_tools())
        except _UNUSABLE as error:
            raise ConfigError(
                f"tools.settings.url: '{self.url}' does not list its tools: {describe_with_class(error)}"
            ) from error

    def reset(self, query: Query) -> NemoGymSession:
        """A session that seeds at its first call. Raises ValueError for a query without a row."""
        row = query.reference.environment.get(_ROW)
        if not isinstance(row, Mapping) or not isinstance(row.get(_PARAMETERS), Mapping):
            raise ValueError(f"field 'reference.{_ROW}': expected a row with {_PARAMETERS}, got {str(row)[:80]!r}")
        return NemoGymSession(self, row)


class NemoGymSession(Session):
    """One rollout of one row."""

    def __init__(self, environment: NemoGymEnvironment, row: Mapping[str, Any]) -> None:
        self._environment, self._row = environment, row
        self._client = LimitedClient(environment.url, environment.headers, environment.timeout)
        self._output: list[dict[str, Any]] = []
        self._mcp: McpEnvironment | None = None
        self._mcp_session: Session | None = None
        self._seeded = False

    def start(self) -> None:
        """Seed the session. Raises TransportError if the server cannot be reached, RuntimeError if it refuses."""
        if self._seeded:
            return
        answer = self._post("seed_session", self._row)
        if not answer.is_success:
            raise RuntimeError(f"the server refuses to seed a session: {answer.status_code} {answer.text[:500]}")
        try:
            metadata = answer.json().get("mcp") or {}
            path, headers = metadata.get("url_path", ""), metadata.get("headers") or {}
        except (ValueError, AttributeError) as error:
            raise RuntimeError(f"/seed_session answered something else than an object: {answer.text[:200]}") from error
        if metadata:
            address = f"{self._environment.url}/{path.lstrip('/')}"
            server = McpConfig(url=address, headers={**self._environment.headers, **headers})
            self._mcp = McpEnvironment(server, self._environment.timeout)
            self._mcp_session = self._mcp.reset(_EMPTY_QUERY)
        self._seeded = True

    def mcp_tools(self) -> Sequence[ToolSchema]:
        """The tools of the MCP session; none without one."""
        self.start()
        return self._mcp.tools() if self._mcp else ()

    def call(self, call: ToolCall) -> ToolResult:
        """Post a call to the route of its tool, or make it over MCP."""
        self.start()
        parameters = self._parameters.get(call.name)
        if parameters and (problem := check_arguments(parameters, call.arguments)):
            result = ToolResult.failure(StepStatus.INVALID_ARGUMENTS, problem)
        elif self._mcp_session:
            result = self._mcp_session.call(call)
        elif parameters is None:
            result = ToolResult.failure(StepStatus.UNKNOWN_TOOL, f"no tool is named '{call.name}'")
        else:
            result = self._post_call(call)
        self._record(call, result.observation)
        return result

    def solved(self, final_answer: str | None) -> float | None:
        """The reward of /verify. Raises VerdictError where it gives none."""
        self.start()
        if final_answer is not None:
            self._output.append(_make_answer_item(final_answer))
        answer = self._post("verify", {**self._row, "response": self._write_response()})
        try:
            reward = answer.raise_for_status().json()["reward"]
        except (httpx2.HTTPError, LookupError, TypeError, ValueError) as error:
            raise VerdictError(f"/verify gave no reward: {error}: {answer.text[:500]}") from error
        return self._environment.range.verdict(reward)

    def close(self) -> None:
        """Close the connections."""
        if self._mcp_session:
            self._mcp_session.close()
        if self._mcp:
            self._mcp.close()
        self._client.close()

    @cached_property
    def _parameters(self) -> Mapping[str, Mapping[str, Any]]:
        tools = _read_tools(self._row, "the row")
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        return self._client.request("POST", path, body)

    def _post_call(self, call: ToolCall) -> ToolResult:
        answer = self._post(call.name, call.arguments)
        if answer.is_success:
            return ToolResult(StepStatus.OK, answer.text)
        return ToolResult(_STATUSES.get(answer.status_code, StepStatus.TOOL_ERROR), answer.text)

    def _record(self, call: ToolCall, observation: str) -> None:
        call_id = f"call_{len(self._output)}"
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        call_item = {"type": "function_call", "call_id": call_id, "name": call.name, "arguments": arguments}
        self._output += [
            {**call_item, "id": f"fc_{call_id}", "status": "completed"},
            {"type": "function_call_output", "call_id": call_id, "output": observation},
        ]

    def _write_response(self) -> dict[str, Any]:
        """The episode as OpenAI's responses write it."""
        parameters = self._row[_PARAMETERS]
        return {
            "id": "resp_steptool",
            "created_at": time.time(),
            "model": "steptool",
            "object": "response",
            "output": self._output,
            "parallel_tool_calls": bool(parameters.get("parallel_tool_calls", False)),
            "tool_choice": parameters.get("tool_choice") or "auto",
            "tools": parameters.get("tools") or [],
            "status": "completed",
        }


_EMPTY_QUERY = Query("", "", NemoGymEnvironment.name, "", ())


def _make_answer_item(text: str) -> dict[str, Any]:
    content = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_final", "role": "assistant", "status": "completed", "content": [content]}


def _read_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in filter(str.strip, lines)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"tools.settings.datasets: {file} cannot be read as JSONL: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ConfigError(f"tools.settings.datasets: {file}, row {number + 1}: expected an object, got {row!r:.80}")
        yield row


def _read_instruction(row: Mapping[str, Any], where: str) -> str:
    """The texts of the prompt. Raises ConfigError for a row without any."""
    parameters = row.get(_PARAMETERS)
    prompt = parameters.get("input") if isinstance(parameters, Mapping) else None
    items = [{"content": prompt}] if isinstance(prompt, str) else prompt
    instructions = parameters.get("instructions") if isinstance(parameters, Mapping) else None
    if isinstance(items, list) and (
        text := join_instructions(
            [instructions, *(read_content_text(i.get("content")) for i in items if isinstance(i, Mapping))]
        )
    ):
        return text
    raise ConfigError(f"{where}: expected a prompt in {_PARAMETERS}.input, a text or messages with texts")


def _read_tools(row: Mapping[str, Any], where: str) -> list[ToolSchema]:
    """The functions of a row. Raises ConfigError for one without a name or with parameters that are no object."""
    tools = row[_PARAMETERS].get("tools") or [] if isinstance(row.get(_PARAMETERS), Mapping) else []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConfigError(f"{where}: expected a list of tools in {_PARAMETERS}.tools, got {str(tools)[:80]}")
    functions = [tool for tool in tools if tool.get("type", "function") == "function"]
    if any(not tool.get("name") for tool in functions):
        raise ConfigError(f"{where}: expected functions with a name in {_PARAMETERS}.tools")
    for tool in functions:
        if not isinstance(tool.get("parameters") or {}, Mapping):
            raise ConfigError(
                f"{where}: expected an object as parameters of {tool['name']}, got {str(tool['parameters'])[:80]}"
            )
    return [make_tool(tool["name"], tool.get("description"), tool.get("parameters")) for tool in functions]
