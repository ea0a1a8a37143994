"""Tasksets of the package verifiers (0.4): their tasks, toolsets and rewards, played by our runner.

A toolset runs in this process, behind the MCP server object that it registers its tools with. Its state is that of the
episode's trace, as it would be over verifiers' own channel. The verdict is the trace's reward after the task's own
`finalize` and `score`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import cached_property
from typing import Any, Self

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from steptool.artifacts.errors import describe_with_class
from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.adapters import (
    RewardRange,
    find_split,
    import_package,
    join_instructions,
    make_tool,
    read_object_setting,
)
from steptool.environments.base import Environment, Session, ToolResult, import_object
from steptool.environments.mcp.answers import write_answer_text
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory

_TASK = "task"
"""Key of `Query.reference.environment` with the number of a task in its taskset."""
_state: ContextVar[Any] = ContextVar("state")
"""State of the episode whose tool is called."""


class VerifiersEnvironment(Environment):
    """A taskset for one agent with tools.

    `taskset` is the id of an installed package or path/to/file.py:Class, `config` the fields of its configuration,
    `limit` the number of tasks that are taken (0: all), and `reward_range` the rewards of a task that failed and of one
    that is solved. Raises ConfigError for a taskset that cannot be loaded or has an environment class of its own.
    """

    name, blocking = "verifiers", True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The taskset that `tools.settings` names."""
        import_package("verifiers.v1", cls.name, "verifiers>=0.4")
        return super().open(tools, recordings)

    def __init__(
        self,
        taskset: str,
        config: Mapping[str, Any] | None = None,
        limit: int = 0,
        reward_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ConfigError(f"tools.settings.limit: expected a number of tasks, or 0 for all, got {limit!r}")
        self._taskset = _load_taskset(taskset, read_object_setting(config or {}, "config"))
        if not limit and not self._taskset.bounded:
            raise ConfigError(f"tools.settings.limit: the taskset '{taskset}' has no end: say how many tasks to take")
        self._limit, self._range = limit, RewardRange.parse(list(reward_range))

    def tools(self) -> Sequence[ToolSchema]:
        """The tools of the first task. Raises ValueError for a taskset without tasks or tools."""
        if not self._tasks:
            raise ValueError("tools.settings.taskset: the taskset has no tasks")

        async def list_tools() -> list[ToolSchema]:
            async with AsyncExitStack() as stack:
                schemas = await _open_tools(self._tasks[0], self._taskset, stack)
                return [schema for tools in schemas for schema in await tools.schemas()]

        return asyncio.run(list_tools())

    def tasks(self) -> Iterator[Mapping[str, Any]]:
        """The tasks; system prompt and prompt together are the instruction."""
        for number, task in enumerate(self._tasks):
            data = task.data
            yield {
                "id": str(data.id or data.name or f"{type(task).__name__}-{number}"),
                "instruction": join_instructions([data.system_prompt, data.prompt_text]),
                "split": find_split(str(getattr(data, "split", "") or "")),
                "reference": {_TASK: number},
            }

    def reset(self, query: Query) -> VerifiersSession:
        """A session of the task that `reference.task` numbers. Raises ValueError where there is no such task."""
        number = query.reference.environment.get(_TASK)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._tasks):
            raise ValueError(
                f"field 'reference.{_TASK}': expected a number below {len(self._tasks)}, the tasks of the taskset, "
                f"got {number!r}"
            )
        task = self._tasks[number]
        if task.NEEDS_CONTAINER:
            raise ValueError(f"task {number} of the taskset needs a container, which this environment does not start")
        return VerifiersSession(task, self._taskset, self._range)

    @cached_property
    def _tasks(self) -> list[Any]:
        return list(self._taskset.take(self._limit) if self._limit else self._taskset)


class VerifiersSession(Session):
    """One rollout of one task."""

    def __init__(self, task: Any, taskset: Any, reward_range: RewardRange) -> None:
        self._task, self._taskset, self._range = task, taskset, reward_range
        self._stack = AsyncExitStack()
        self._tools: dict[str, tuple[_Tools, ToolSchema]] | None = None
        self._trace: Any = _make_trace(task)
        self._runtime: Any = None

    async def call(self, call: ToolCall) -> ToolResult:  # type: ignore[override]
        """Call a tool, and ask the task's own stops whether the episode is over."""
        tools = await self._open()
        if call.name not in tools:
            return ToolResult.failure(StepStatus.UNKNOWN_TOOL, f"no tool is named '{call.name}'")
        toolset, schema = tools[call.name]
        if problem := check_arguments(schema["function"]["parameters"], call.arguments):
            result = ToolResult.failure(StepStatus.INVALID_ARGUMENTS, problem)
        else:
            result = await toolset.call(call, self._trace.state)
        self._record(call, result.observation)
        return ToolResult(result.status, result.observation, ends_episode=await self._is_stopped())

    async def solved(self, final_answer: str | None) -> float | None:  # type: ignore[override]
        """The reward of the trace, scored by the task. None if no reward could be computed."""
        await self._open()
        if final_answer is not None:
            self._add({"role": "assistant", "content": final_answer}, sampled=True)
        self._trace.stop("agent_completed")
        await self._task.finalize(self._trace, self._runtime)
        await self._task.score(self._trace, self._runtime)
        scores = [reward for reward in self._trace.rewards.values() if reward is not None]
        return self._range.verdict(self._trace.reward) if scores else None

    async def close(self) -> None:  # type: ignore[override]
        """Release the toolsets and the runtime."""
        await self._stack.aclose()

    async def _open(self) -> dict[str, tuple[_Tools, ToolSchema]]:
        if self._tools is not None:
            return self._tools
        from verifiers.v1.runtimes import SubprocessConfig, make_runtime

        self._runtime = make_runtime(SubprocessConfig(), name=self._trace.id)
        await self._runtime.start()
        self._stack.push_async_callback(self._runtime.stop)
        await self._task.setup(self._trace, self._runtime)
        tools_by_name: dict[str, tuple[_Tools, ToolSchema]] = {}
        for tools in await _open_tools(self._task, self._taskset, self._stack):
            tools_by_name |= {schema["function"]["name"]: (tools, schema) for schema in await tools.schemas()}
        data = self._task.data
        if data.system_prompt:
            self._add({"role": "system", "content": data.system_prompt})
        self._add({"role": "user", "content": data.prompt_text})
        self._tools = tools_by_name  # only now, so that a later call does not go on with half of the tools
        return tools_by_name

    def _record(self, call: ToolCall, observation: str) -> None:
        call_id = f"call_{len(self._trace.nodes)}"
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        tool_call = {"id": call_id, "name": call.name, "arguments": arguments}
        self._add({"role": "assistant", "tool_calls": [tool_call]}, sampled=True)
        self._add({"role": "tool", "tool_call_id": call_id, "content": observation, "name": call.name})

    def _add(self, message: Mapping[str, Any], *, sampled: bool = False) -> None:
        from verifiers.v1.graph import MessageNode

        nodes = self._trace.nodes
        node = {"parent": len(nodes) - 1 if nodes else None, "message": message, "sampled": sampled}
        nodes.append(MessageNode.model_validate(node))

    async def _is_stopped(self) -> bool:
        """Whether one of the task's stop conditions on the whole trace holds. Those on requests to a model are left
        out."""
        from verifiers.v1.session import call_hook, hook_boundary
        from verifiers.v1.trace import Trace

        stops = [stop for stop in self._task.hooks("stop") if hook_boundary(stop, allow_trace=True) is Trace]
        return any([bool(await call_hook(stop, {Trace: self._trace})) for stop in stops])


class _Tools:
    """The tools of one toolset, behind the server object with which it registers them."""

    def __init__(self, toolset: Any) -> None:
        self._toolset, self._server = toolset, MCPServer(toolset.server_name or type(toolset).__name__)
        toolset._pull_state, toolset._push_state = _pull_state, _push_state
        toolset.register(self._server)
        self._prefix = f"{toolset.server_name}_" if toolset.server_name else ""

    async def schemas(self) -> list[ToolSchema]:
        """The tools under the names by which verifiers' harnesses offer them."""
        return [
            make_tool(f"{self._prefix}{tool.name}", tool.description, tool.input_schema)
            for tool in await self._server.list_tools()
        ]

    async def call(self, call: ToolCall, state: Any) -> ToolResult:
        """The result of a tool that works on this state."""
        token = _state.set(state)
        try:
            result: Any = await self._server.call_tool(call.name.removeprefix(self._prefix), dict(call.arguments))
        except ToolError as error:
            return ToolResult.failure(StepStatus.TOOL_ERROR, describe_with_class(error.__cause__ or error))
        finally:
            _state.reset(token)
        status = StepStatus.TOOL_ERROR if result.is_error else StepStatus.OK
        return ToolResult(status, write_answer_text(result))


async def _pull_state() -> Any:
    return _state.get()


async def _push_state(before: bytes) -> None:
    """Do nothing: the tool has already changed the state of the trace."""


async def _open_tools(task: Any, taskset: Any, stack: AsyncExitStack) -> list[_Tools]:
    """The toolsets of a task and of its taskset, set up. The stack releases them."""
    opened_tools = []
    of_task = type(task).toolsets(task.config)
    for toolset in [*of_task, *type(taskset).toolsets(taskset.config)]:
        if toolset.config.url:
            raise ConfigError(
                f"the toolset {type(toolset).__name__} is a server at {toolset.config.url}: play it as the environment "
                "mcp with tools.mcp.url"
            )
        await stack.enter_async_context(toolset._exit_stack)
        await toolset.setup()
        if toolset in of_task:
            await toolset.setup_task(task.data)
        opened_tools.append(_Tools(toolset))
    return opened_tools


def _make_trace(task: Any) -> Any:
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.state import state_cls
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask

    about = TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    return Trace(task=about, state=state_cls(type(task))(), agent=AgentInfo(config=AgentConfig()))


def _load_taskset(named: str, fields: Mapping[str, Any]) -> Any:
    from verifiers.v1.configs.taskset import TasksetConfig
    from verifiers.v1.envs.single_agent import SingleAgentEnv
    from verifiers.v1.taskset import Taskset
    from verifiers.v1.utils import loaders
    from verifiers.v1.utils.generic import concrete_type

    field = "tools.settings.taskset"
    if ":" in named:
        cls = import_object(named, field, "a class of verifiers' tasksets")
    else:
        try:
            cls = loaders.taskset_class(named)
            plays = loaders.environment_class(named)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"{field}: '{named}' cannot be loaded: {describe_with_class(error)}") from error
        if plays is not SingleAgentEnv:
            raise ConfigError(
                f"{field}: '{named}' plays by rules of its own ({plays.__name__}); expected a taskset for one agent "
                "with tools"
            )
    if not (isinstance(cls, type) and issubclass(cls, Taskset)):
        raise ConfigError(f"{field}: expected a subclass of verifiers.v1.Taskset, got {cls!r}")
    try:
        config_type = concrete_type(cls, TasksetConfig, origin=Taskset) or TasksetConfig
        return cls(config_type.model_validate({"id": named.partition(":")[0], **fields}))
    except ValueError as error:
        raise ConfigError(f"tools.settings.config: {describe_with_class(error)}") from error
