"""Environments behind OpenEnv's protocol: one WebSocket for each episode, with the messages reset and step.

An environment with tools takes calls. Any other one takes actions of one kind, which the model sees as one tool. The
package openenv is not needed, since the protocol is JSON; it cannot be installed beside this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from steptool.artifacts.errors import describe_with_class
from steptool.chat.messages import GIVE_ANSWER, GIVE_UP
from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.adapters import (
    LimitedClient,
    RewardRange,
    find_split,
    import_package,
    make_tool,
    read_content_text,
    read_object_setting,
    read_reward,
    write_result,
)
from steptool.environments.base import Environment, Session, ToolResult, TransportError, VerdictError
from steptool.environments.schema import check_arguments
from steptool.records import FINISH, Query, StepStatus, ToolCall, ToolSchema, Trajectory

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_RESET = "reset"
"""Key of `Query.reference.environment` with the arguments of the message reset."""
_TOOL_ACTIONS = {"Action", "CallToolAction", "ListToolsAction"}
"""Titles of the action schema of an environment with tools."""
_ACT = "act"
"""Name of the one tool of an environment with actions of one kind."""
_TEXT_FIELDS = ("instruction", "prompt", "question", "problem", "task", "description", "text", "message")
"""Fields of a task or of a first observation in which environments write what is to be done, the likeliest first."""
_STATUSES = {"tool_not_found": StepStatus.UNKNOWN_TOOL, "invalid_args": StepStatus.INVALID_ARGUMENTS}
_LARGEST = 16 << 20
"""Bytes of an answer that are read."""


class OpenEnvEnvironment(Environment):
    """The environment of the server at `url`. `timeout` is the limit on a call in seconds.

    `resets` lists the arguments of reset, one entry for each task, for a server that lists no tasks. `answer` names the
    tool and its argument that take the final answer, as in submit.answer. `reward` says whether the last reward of an
    episode counts or their sum, and `reward_range` which rewards mean not solved and solved.
    """

    name, blocking = "openenv", True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The environment at `tools.settings.url`. Raises ConfigError if it cannot be reached."""
        import_package("websockets.sync.client", cls.name, "steptool[environments]")
        environment = super().open(tools.model_copy(update={"settings": {"timeout": tools.timeout, **tools.settings}}))
        _ = environment.takes_calls
        return environment

    def __init__(
        self,
        url: str,
        resets: Sequence[Mapping[str, Any]] = (),
        answer: str = "",
        reward: Literal["last", "sum"] = "last",
        reward_range: Sequence[float] = (0.0, 1.0),
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        if reward not in ("last", "sum"):
            raise ConfigError(f"tools.settings.reward: expected last or sum, got {reward!r}")
        self.url, self.timeout = url.rstrip("/"), 0.9 * timeout
        self.headers = read_object_setting(headers or {}, "headers")
        self.sums, self.range = reward == "sum", RewardRange.parse(list(reward_range))
        self._resets = [read_object_setting(arguments, "resets") for arguments in resets]
        if answer and not answer.rpartition(".")[0]:
            raise ConfigError(f"tools.settings.answer: expected TOOL.ARGUMENT, got '{answer}'")
        self._answer = answer

    @cached_property
    def takes_calls(self) -> bool:
        """Whether the environment has tools. Raises ConfigError if the server cannot be reached."""
        return self._action.get("title") in _TOOL_ACTIONS

    def answer_call(self, final_answer: str | None) -> ToolCall | None:
        """The call that submits the final answer, or that gives up without one. None if no tool takes answers."""
        tool, _, argument = self._answer.rpartition(".")
        if tool:
            return None if final_answer is None else ToolCall(tool, {argument: final_answer})
        if FINISH not in self.parameters:
            return None
        if final_answer is None:
            return ToolCall(FINISH, {"return_type": GIVE_UP})
        return ToolCall(FINISH, {"return_type": GIVE_ANSWER, "final_answer": final_answer})

    @cached_property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """JSON schema of each tool's arguments; our own Finish is among them if the server plays one of our tasks."""
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in self._tools}

    def tools(self) -> Sequence[ToolSchema]:
        """The tools that the server lists, or one that takes its actions."""
        return self._tools

    @cached_property
    def _tools(self) -> list[ToolSchema]:
        if not self.takes_calls:
            fields = {name: field for name, field in self._action.get("properties", {}).items() if name != "metadata"}
            parameters = {**self._action, "properties": fields}
            return [make_tool(_ACT, str(self._action.get("description") or "Do something."), parameters)]
        try:
            with OpenEnvSession(self, {}) as session:
                tools = session.ask("step", {"type": "list_tools"})["observation"]["tools"]
            return [make_tool(tool["name"], tool.get("description"), tool.get("input_schema")) for tool in tools]
        except _UNUSABLE as error:
            raise ConfigError(
                f"tools.settings.url: {self.url} does not list its tools: {describe_with_class(error)}"
            ) from error

    def tasks(self) -> Iterator[Mapping[str, Any]]:
        """The tasks that the server lists, or one for each of the configured `resets`.

        The instruction is what the task says, else what the first observation says. Raises ConfigError where the server
        lists no tasks in OpenEnv's form.
        """
        try:
            tasks = list(self._list_tasks())
            texts = [_find_text(task) or self._read_first_text(arguments) for task, arguments in tasks]
        except ConfigError:
            raise
        except _UNUSABLE as error:
            raise ConfigError(
                f"tools.settings.url: {self.url} does not list its tasks: {describe_with_class(error)}"
            ) from error
        for number, ((task, arguments), text) in enumerate(zip(tasks, texts, strict=True)):
            split = find_split(str(arguments.get("split", "")))
            yield {
                "id": str(task.get("id") or f"{split or 'task'}-{number}"),
                "instruction": text,
                "split": split,
                "reference": {_RESET: arguments},
            }

    def _read_first_text(self, arguments: Mapping[str, Any]) -> str:
        with OpenEnvSession(self, arguments) as session:
            return _find_text(session.first_observation) or _write_observation(session.first_observation)

    def _list_tasks(self) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """Each task with the arguments of its reset."""
        if self._resets:
            yield from (({}, arguments) for arguments in self._resets)
            return
        (name,) = self._get_list("list_environments")
        splits = self._get(f"{name}/splits")
        if splits is None:
            yield {}, {}
            return
        for split in splits:
            reply = self._get(f"{name}/tasks", {"split": split["name"]}) or {"tasks": []}
            for index, task in enumerate(reply["tasks"]):
                yield task if isinstance(task, Mapping) else {}, {"split": split["name"], "index": index}

    def reset(self, query: Query) -> OpenEnvSession:
        """A session that connects at its first call. Raises ValueError for a `reference.reset` that is no object."""
        arguments = query.reference.environment.get(_RESET, {})
        if not isinstance(arguments, Mapping):
            raise ValueError(f"field 'reference.{_RESET}': expected the arguments of reset, got {arguments!r}")
        return OpenEnvSession(self, arguments)

    @cached_property
    def _action(self) -> Mapping[str, Any]:
        answer = self._get("schema")
        schema = answer.get("action", {}) if isinstance(answer, Mapping) else answer
        if not isinstance(schema, Mapping | None):
            raise ConfigError(
                f"tools.settings.url: {self.url}/schema: expected an object with the schema of an action, got "
                f"{str(answer)[:80]!r}"
            )
        return schema or {}

    def _get_list(self, path: str) -> list[Any]:
        """The list that a route answers. Raises ConfigError for anything else, and for a server without the route."""
        answer = self._get(path)
        if not isinstance(answer, list):
            raise ConfigError(
                f"tools.settings.url: {self.url}/{path}: expected a list, got {str(answer)[:80]!r}; for a server that "
                "lists no tasks, set tools.settings.resets"
            )
        return answer

    def _get(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST with a body; None where the server has no such route."""
        try:
            client = LimitedClient(self.url, self.headers, self.timeout)
            answer = client.request("GET" if body is None else "POST", path, body)
        except (TransportError, RuntimeError) as error:
            raise ConfigError(f"tools.settings.url: {error}") from error
        if answer.status_code in (404, 405, 501):
            return None
        with suppress(ValueError):
            if answer.is_success:
                return answer.json()
        text = " ".join(answer.text.split())
        raise ConfigError(
            f"tools.settings.url: {self.url}/{path} does not answer as OpenEnv does, but with {answer.status_code} "
            f"{text[:80]!r}"
        )


class OpenEnvSession(Session):
    """One episode over a connection of its own."""

    def __init__(self, environment: OpenEnvEnvironment, arguments: Mapping[str, Any]) -> None:
        self._environment, self._arguments = environment, arguments
        self._connection: ClientConnection | None = None
        self._rewards: list[Any] = []
        """The rewards as they came: what is no number leaves the episode without a verdict."""
        self._lost = self._answered = self._done = False
        self._first: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def first_observation(self) -> Mapping[str, Any]:
        """What the environment shows at the beginning."""
        self.start()
        assert self._first is not None
        return self._first

    def start(self) -> None:
        """Connect and reset. Raises TransportError if the server cannot be reached, or has no room."""
        if self._first is None:
            answer = self.ask("reset", dict(self._arguments))
            self._first = _read_fields(answer.get("observation"))
            self._note_end(answer)

    def call(self, call: ToolCall) -> ToolResult:
        """Send a call or an action; `done` ends the episode, also that of reset."""
        self.start()
        if self._done:
            over = ToolResult.failure(StepStatus.TOOL_ERROR, "the environment has ended the episode")
            return replace(over, ends_episode=True)
        parameters = self._environment.parameters.get(call.name)
        if parameters is None:
            return ToolResult.failure(StepStatus.UNKNOWN_TOOL, f"no tool is named '{call.name}'")
        if problem := check_arguments(parameters, call.arguments):
            return ToolResult.failure(StepStatus.INVALID_ARGUMENTS, problem)
        if not self._environment.takes_calls:
            return self._step(dict(call.arguments))
        return self._step({"type": "call_tool", "tool_name": call.name, "arguments": dict(call.arguments)})

    def next_turn(self, final_answer: str) -> str | None:
        """Send the final answer to the tool that takes it, and return what the environment says if it goes on."""
        return self._send_answer(final_answer)

    def solved(self, final_answer: str | None) -> float | None:
        """The verdict from the rewards. Without rewards it is 0 for an episode that the environment has not ended and
        that has no answer, and None for any other.
        """
        if self._lost:
            raise VerdictError("the connection was lost during the episode, and its state with it")
        if not self._answered:
            self._send_answer(final_answer)
        if not self._rewards:
            return None if self._done or final_answer is not None else 0.0
        if self._environment.sums:
            return self._environment.range.verdict(sum(map(read_reward, self._rewards)))
        return self._environment.range.verdict(self._rewards[-1])

    def close(self) -> None:
        """Close the connection, which ends the episode at the server."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data of the answer to one message.

        Raises _Refused for an answer that is an error. Without an answer it raises TransportError before the episode
        has begun, and RuntimeError after that, since the server has lost the episode's state with the connection.
        """
        from websockets.exceptions import WebSocketException

        connection = self._connection or self._connect()
        try:
            connection.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(connection.recv(timeout=self._environment.timeout))
        except (WebSocketException, OSError, ValueError) as error:
            self._lost = self._first is not None
            self.close()
            raise (RuntimeError if self._lost else TransportError)(f"the connection was lost: {error}") from error
        content: Any = (answer.get("data") or {}) if isinstance(answer, dict) else None
        if not isinstance(content, dict):
            raise RuntimeError(f"the server answered something that is no message of OpenEnv: {str(answer)[:200]}")
        if answer.get("type") == "error":
            raise _Refused(str(content.get("code")), str(content.get("message") or content.get("errors")))
        return content

    def _connect(self) -> ClientConnection:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        if self._lost:
            raise RuntimeError("the connection was lost, and the state of the episode with it")
        environment = self._environment
        address = f"{environment.url.replace('http', 'ws', 1)}/ws"
        try:
            self._connection = connect(
                address,
                additional_headers=environment.headers,
                open_timeout=environment.timeout,
                max_size=_LARGEST,
            )
        except (WebSocketException, OSError) as error:
            raise TransportError(f"{address} cannot be reached: {error}") from error
        return self._connection

    def _step(self, action: Mapping[str, Any]) -> ToolResult:
        try:
            answer = self.ask("step", action)
        except _Refused as error:
            invalid = error.code == "VALIDATION_ERROR"
            return ToolResult.failure(StepStatus.INVALID_ARGUMENTS if invalid else StepStatus.TOOL_ERROR, str(error))
        self._note_end(answer)
        observation = _read_fields(answer.get("observation"))
        if "tool_name" in observation and (problem := observation.get("error")):
            problem = problem if isinstance(problem, Mapping) else {"message": problem}
            status = _STATUSES.get(str(problem.get("error_type")), StepStatus.TOOL_ERROR)
            return replace(ToolResult.failure(status, str(problem.get("message"))), ends_episode=self._done)
        result = observation.get("result")
        is_failure = isinstance(result, Mapping) and bool(result.get("is_error") or result.get("isError"))
        status = StepStatus.TOOL_ERROR if is_failure else StepStatus.OK
        return ToolResult(status, _write_observation(observation), ends_episode=self._done)

    def _note_end(self, answer: Mapping[str, Any]) -> None:
        """Keep the reward of an answer, and whether it ends the episode."""
        if answer.get("reward") is not None:
            self._rewards.append(answer["reward"])
        self._done = bool(answer.get("done"))

    def _send_answer(self, final_answer: str | None) -> str | None:
        """Submit the answer; None gives up. Returns what the environment says if the episode goes on."""
        if (call := self._environment.answer_call(final_answer)) is None:
            return None
        self.start()
        if self._done:
            return None
        action = {"type": "call_tool", "tool_name": call.name, "arguments": dict(call.arguments)}
        result = self._step(action)
        self._answered = self._done
        goes_on = call.name == FINISH and not self._done and result.status is StepStatus.OK
        return result.observation if goes_on else None


class _Refused(Exception):
    """The server has answered a message with an error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


_UNUSABLE = (_Refused, TransportError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)
"""What goes wrong with a server that answers otherwise than OpenEnv does."""


def _read_fields(observation: Any) -> Mapping[str, Any]:
    """The fields of an observation; what is no object is its text."""
    if observation is None:
        return {}
    return observation if isinstance(observation, Mapping) else {"text": observation}


def _find_text(fields: Mapping[str, Any]) -> str:
    texts = (fields.get(name) for name in _TEXT_FIELDS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _write_observation(observation: Mapping[str, Any]) -> str:
    """What the model reads: the result of a call, a lone text, or the fields as JSON."""
    if "tool_name" in observation:
        result = observation.get("result")
        if isinstance(result, Mapping) and isinstance(result.get("content"), list):
            return read_content_text(result["content"]) or write_result(result.get("structured_content"))
        return write_result(result)
    fields = {name: value for name, value in observation.items() if name != "metadata" and value is not None}
    return write_result(next(iter(fields.values())) if len(fields) == 1 else fields)
