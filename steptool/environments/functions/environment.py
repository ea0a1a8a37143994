"""Python functions as tools: each episode has an object of its own, and what its code raises is a failed step.

`SimulatedUser` is for functions in which the user answers questions and has a goal of its own: a chat model plays it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Protocol, Self

from steptool.chat.endpoint import Endpoint
from steptool.config import EndpointConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.functions.process import ProcessTools
from steptool.environments.functions.toolbox import EpisodeTools, describe_function, load_toolbox, make_failed_result
from steptool.environments.schema import SchemaError, check_tools, prepare_arguments_check
from steptool.records import Message, Query, StepStatus, ToolCall, ToolSchema, Trajectory

STATE = "state"
"""Key of `Query.reference.environment` with the keyword arguments that an episode's object is made with."""
_SHARE = 0.9
"""Share of the time limit after which a process is ended: early enough to say so before the call is given up."""
Check = Callable[[Mapping[str, Any]], str | None]
"""Says what is wrong with the arguments of a call, if anything."""
END = "[END]"
"""What the model writes when the conversation is over."""
_PROMPT = """You play the user of an assistant. You are not the assistant.

Your goal:
{goal}

Rules:
- Write one short message at a time, as a user would type it.
- Give information only when the assistant asks for it, and invent nothing that your goal does not say.
- When your goal is reached, or the assistant says that it cannot be reached, write {end} and nothing else."""


class Tools(Protocol):
    """The functions of one episode: in this process, or in one of their own."""

    def start(self) -> None:
        """Make the object. Raises RuntimeError where that fails."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """The result of a function; a failed step for what it raises."""
        ...

    def state_digest(self) -> str | None:
        """What `state_digest` returns; None without such a function. Raises RuntimeError where it fails."""
        ...

    def solved(self, final_answer: str | None) -> float | None:
        """The verdict of `solved`; None without one. Raises VerdictError where it fails."""
        ...

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says next; None without `next_turn`, or where it returns None."""
        ...

    def close(self) -> None:
        """Release what the episode holds."""
        ...


class FunctionsEnvironment(Environment):
    """The class or the functions that `tools.functions` names.

    If it is a class, each episode gets an object of its own, whose public methods are the tools. Functions have no
    state. With the isolation `process` the object lives in a process of its own, which is ended where a call takes
    longer than `timeout` seconds. Raises ConfigError if what is named cannot be imported or described by a schema.
    """

    name, blocking = "functions", True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The tools that `tools.functions` names."""
        return cls(tools.functions, tools.isolation, tools.timeout)

    def __init__(
        self, named: str, isolation: Literal["thread", "process"] = "thread", timeout: float = float("inf")
    ) -> None:
        self._named, self._isolation, self._limit = named, isolation, _SHARE * timeout
        self._toolbox = load_toolbox(named)
        self._schemas = [describe_function(function, name) for name, function in self._toolbox.functions.items()]
        try:
            check_tools(self._schemas, f"tools.functions '{named}'")
        except SchemaError as error:
            raise ConfigError(str(error)) from error
        functions = [schema["function"] for schema in self._schemas]
        self._checks = {tool["name"]: prepare_arguments_check(tool["parameters"]) for tool in functions}

    def tools(self) -> Sequence[ToolSchema]:
        """One schema per function, in the order in which they are written down."""
        return self._schemas

    def reset(self, query: Query) -> FunctionsSession:
        """A session whose object is made at the first call.

        Raises ValueError for a `reference.state` that the class does not take.
        """
        state = query.reference.environment.get(STATE, {})
        try:
            inspect.signature(self._toolbox.make).bind(**state)
        except TypeError as error:
            where = f"query '{query.query_id}': field 'reference.{STATE}'"
            raise ValueError(
                f"{where}: expected keyword arguments of tools.functions, got {state!r} ({error})"
            ) from None
        return FunctionsSession(self._checks, self._make_episode_tools(state, query.reference.to_json()))

    def _make_episode_tools(self, state: Mapping[str, Any], reference: Mapping[str, Any]) -> Tools:
        if self._isolation == "process":
            return ProcessTools(self._named, state, reference, self._limit)
        return EpisodeTools(self._toolbox, state, reference, self._limit)


class FunctionsSession(Session):
    """One episode with an object of its own. A function never sees an object that others hold as well."""

    def __init__(self, checks: Mapping[str, Check], tools: Tools) -> None:
        self._checks, self._tools = checks, tools

    def start(self) -> None:
        """Make the object of the episode. Raises RuntimeError where its own code fails."""
        self._tools.start()

    def call(self, call: ToolCall) -> ToolResult:
        """Check that the function exists and that the arguments fit its schema, and call it."""
        check = self._checks.get(call.name)
        if check is None:
            return make_failed_result(StepStatus.UNKNOWN_TOOL, f"no function is named '{call.name}'")
        if problem := check(call.arguments):
            return make_failed_result(StepStatus.INVALID_ARGUMENTS, problem)
        return self._tools.call(call.name, call.arguments)

    def state_digest(self) -> str | None:
        """What `state_digest` returns; None without such a function. Raises RuntimeError where it fails."""
        return self._tools.state_digest()

    def solved(self, final_answer: str | None) -> float | None:
        """What `solved` returns; None without such a function. Raises VerdictError where it fails."""
        return self._tools.solved(final_answer)

    def next_turn(self, final_answer: str) -> str | None:
        """What `next_turn` returns; None without such a function. Raises RuntimeError where it fails."""
        return self._tools.next_turn(final_answer)

    def close(self) -> None:
        """Release what the episode holds."""
        self._tools.close()


class SimulatedUser:
    """One user in one conversation. The model sees the assistant's messages as those of its partner.

    The endpoint's file, if it has one, keeps the replies, so that the same conversation gets the same user again.
    """

    def __init__(self, endpoint: Endpoint, goal: str) -> None:
        self._endpoint = endpoint
        self._messages: list[Message] = [{"role": "system", "content": _PROMPT.format(goal=goal, end=END)}]

    @classmethod
    def connect(cls, base_url: str, model: str, goal: str, key_variable: str = "OPENAI_API_KEY") -> Self:
        """A user behind an endpoint of OpenAI's form. All users of an endpoint share its connections."""
        return cls(_share_endpoint(base_url, model, key_variable), goal)

    def reply(self, assistant: str) -> str | None:
        """What the user says to a message of the assistant; None at the end of the conversation.

        Raises EndpointError where the endpoint does not answer.
        """
        self._messages.append({"role": "user", "content": assistant})
        answer = self._endpoint.chat(self._messages).message
        text = str(answer.get("content") or "").strip()
        self._messages.append({"role": "assistant", "content": text})
        return None if not text or END in text else text


@cache
def _share_endpoint(base_url: str, model: str, key_variable: str) -> Endpoint:
    return Endpoint(EndpointConfig(base_url=base_url, model=model, key_variable=key_variable))
