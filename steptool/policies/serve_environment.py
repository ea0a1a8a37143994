"""Our environments and tasks behind OpenEnv's protocol, for any agent and trainer that speaks it.

A client plays an episode over a WebSocket: `reset` begins a task, and `step` with a call of a tool makes a turn. The
call of Finish ends the episode, and its reward is the verdict. Turns, limits and endings are those of our own rollouts.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import BoundedSemaphore
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from steptool import __version__
from steptool.chat.call_format import ParsedTurn
from steptool.chat.messages import read_call
from steptool.config import ConfigError, ToolsConfig
from steptool.environments.adapters import import_package
from steptool.environments.base import Environment, describe_error
from steptool.environments.limits import LimitedEnvironment
from steptool.records import Query, StepStatus, ToolSchema
from steptool.rollout.episode import Episode, Turn

KEY_VARIABLE = "STEPTOOL_API_KEY"
"""Environment variable with the key that clients must send. If it is unset, they need no key."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LARGEST = 4 << 20
"""Bytes of a message, at most."""
_ERROR_TYPES = {StepStatus.UNKNOWN_TOOL: "tool_not_found", StepStatus.INVALID_ARGUMENTS: "invalid_args"}
"""OpenEnv's names of failures of a call; every other failure is an execution_error."""
_SPLIT_TYPES = {"heldout": "test"}
"""OpenEnv's name of each of our splits that it calls by another name."""
_ACTION_SCHEMA = {
    "title": "CallToolAction",
    "description": "Call a tool of the task; Finish ends the episode.",
    "type": "object",
    "properties": {
        "type": {"const": "call_tool", "default": "call_tool"},
        "tool_name": {"type": "string"},
        "arguments": {"type": "object"},
    },
    "required": ["tool_name"],
}


class ProtocolError(Exception):
    """A message that cannot be answered; `code` is one of OpenEnv's."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ServedEnvironment:
    """An environment with its tasks by split. Any number of threads may use it."""

    def __init__(self, environment: Environment, queries: Sequence[Query], limits: ToolsConfig, max_steps: int) -> None:
        self.name, self.max_steps, self.room = environment.name, max_steps, BoundedSemaphore(limits.concurrency)
        self.environment = LimitedEnvironment(environment, limits)
        self.splits: dict[str, list[Query]] = {}
        for query in queries:
            self.splits.setdefault(query.split, []).append(query)

    def find(self, arguments: Mapping[str, Any]) -> Query:
        """The task of a reset: by `task_id`, by `split` and `index`, or the first split's by `seed`.

        Raises ProtocolError for a task that is not there.
        """
        task_id, split = arguments.get("task_id"), arguments.get("split") or next(iter(self.splits))
        if task_id is not None:
            queries = [query for queries in self.splits.values() for query in queries if query.query_id == task_id]
            index: Any = 0
        else:
            queries = self.splits.get(split, [])
            index = arguments.get("index")
            index = (arguments.get("seed") or 0) % max(1, len(queries)) if index is None else index
        if not isinstance(index, int) or not 0 <= index < len(queries):
            sizes = {name: len(tasks) for name, tasks in self.splits.items()}
            raise ProtocolError(
                "EXECUTION_ERROR", f"no such task: the splits have {sizes} tasks, the request was {arguments}"
            )
        return queries[index]


class Connection:
    """The connection of one client, which plays one episode after the other."""

    def __init__(self, served: ServedEnvironment) -> None:
        self._served = served
        self._episode: Episode | None = None

    def answer(self, text: str) -> dict[str, Any] | None:
        """The answer to a message; None after close."""
        try:
            message = _read_message(text)
            if message["type"] == "close":
                return None
            if message["type"] == "state":
                return {"type": "state", "data": self._state()}
            answers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
                "reset": self._reset,
                "step": self._step,
            }
            if message["type"] not in answers:
                raise ProtocolError("UNKNOWN_TYPE", f"expected reset, step, state or close, got {message['type']!r}")
            return {"type": "observation", "data": answers[message["type"]](message.get("data") or {})}
        except ProtocolError as error:
            return _error(error.code, str(error))
        except Exception as error:
            return _error("EXECUTION_ERROR", describe_error(error))

    def close(self) -> None:
        """Drop the episode that was not finished."""
        if self._episode:
            self._episode.close()

    def _reset(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        query = self._served.find(arguments)
        self.close()
        self._episode = Episode(query, max_steps=self._served.max_steps)
        self._episode.begin(self._served.environment)
        observation = {"instruction": query.instruction, "tools": _list_tools(query.tools), "task_id": query.query_id}
        return {"observation": observation, "reward": None, "done": False}

    def _step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        if action.get("type") == "list_tools":
            query = self._episode.query if self._episode else self._served.find({})
            return {"observation": {"tools": _list_tools(query.tools)}, "reward": None, "done": False}
        episode = self._episode
        if episode is None or episode.stop is not None:
            raise ProtocolError("EXECUTION_ERROR", "no episode is running: send reset first")
        try:
            call = read_call({"name": action.get("tool_name"), "arguments": action.get("arguments") or {}})
        except ValueError as error:
            raise ProtocolError(
                "VALIDATION_ERROR", f"expected an action with tool_name and arguments: {error}"
            ) from None
        exchange = episode.answer(Turn(ParsedTurn(call, "")))
        episode.record(exchange)
        step = exchange.step
        observation: dict[str, Any] = {"tool_name": call.name, "result": exchange.user_turn or step.observation}
        if step.status not in (StepStatus.OK, StepStatus.FINISH):
            kind = _ERROR_TYPES.get(step.status, "execution_error")
            observation = {"tool_name": call.name, "error": {"error_type": kind, "message": step.observation}}
        metadata: dict[str, Any] = {"status": str(step.status)}
        if episode.stop is not None:
            episode.end()
            metadata |= {"stop_reason": str(episode.stop)}
            trajectory = episode.finish("client", 0.0).trajectory
            metadata |= {"check_error": trajectory.check_error} if trajectory.check_error else {}
            return {"observation": observation, "reward": trajectory.solved, "done": True, "metadata": metadata}
        return {"observation": observation, "reward": None, "done": False, "metadata": metadata}

    def _state(self) -> dict[str, Any]:
        episode = self._episode
        steps = len(episode.exchanges) if episode else 0
        return {"episode_id": episode.query.query_id if episode else None, "step_count": steps}


def make_app(served: ServedEnvironment, key: str = "") -> Starlette:
    """The HTTP application. With a key every request but those of /health needs it as its bearer token."""

    async def play(websocket: WebSocket) -> None:
        if not _has_key(websocket, key):
            await websocket.close(code=1008)
            return
        await websocket.accept()
        if not served.room.acquire(blocking=False):
            await websocket.send_json(_error("CAPACITY_REACHED", "all sessions are taken; raise tools.concurrency"))
            await websocket.close()
            return
        connection = Connection(served)
        try:
            while answer := await run_in_threadpool(connection.answer, await websocket.receive_text()):
                await websocket.send_json(answer)
            await websocket.close()
        except WebSocketDisconnect:
            pass
        finally:
            await run_in_threadpool(connection.close)
            served.room.release()

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    def guard(answer: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            if not _has_key(request, key):
                return JSONResponse({"detail": "the key is missing or wrong"}, status_code=401)
            try:
                body = await request.json() if request.method == "POST" else {}
                if request.path_params.get("name", served.name).lower() != served.name.lower():
                    raise LookupError(f"there is no environment '{request.path_params['name']}'")
                return JSONResponse(answer(body, request.path_params))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                return JSONResponse({"detail": describe_error(error)}, status_code=400)

        return handle

    def tasks_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"id": q.query_id, "instruction": q.instruction, "tier": q.tier} for q in served.splits[body["split"]]]

    return Starlette(
        routes=[
            WebSocketRoute("/ws", play),
            Route("/health", health),
            Route("/metadata", guard(lambda *_: {"name": served.name, "description": _describe(served)})),
            Route("/schema", guard(lambda *_: {"action": _ACTION_SCHEMA, "observation": {}, "state": {}})),
            Route("/list_environments", guard(lambda *_: [served.name])),
            Route("/{name}/splits", guard(lambda *_: [_describe_split(name) for name in served.splits])),
            Route(
                "/{name}/tasks",
                guard(lambda body, _: {"tasks": tasks_of(body), "env_name": served.name}),
                methods=["POST"],
            ),
            Route("/{name}/num_tasks", guard(lambda body, _: {"num_tasks": len(tasks_of(body))}), methods=["POST"]),
            Route("/{name}/task", guard(lambda body, _: {"task": tasks_of(body)[body["index"]]}), methods=["POST"]),
        ]
    )


def serve(served: ServedEnvironment, host: str, port: int) -> None:
    """Serve until the process is told to end; port 0: a free one.

    Raises ConfigError for an address that others reach without a key, and without the package for WebSockets.
    """
    import_package("websockets", "serve-env", "steptool[environments]")
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and host not in _LOOPBACK:
        raise ConfigError(
            f"--host {host} can be reached from other machines: set a key in {KEY_VARIABLE}, or serve on 127.0.0.1"
        )
    config = uvicorn.Config(make_app(served, key), host, port, log_level="warning", ws_max_size=_LARGEST)
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    listener.listen()  # a client may connect as soon as the next line is printed
    print(f"serving {_describe(served)} at http://{host}:{listener.getsockname()[1]}", flush=True)
    server.run([listener])


def _describe(served: ServedEnvironment) -> str:
    sizes = ", ".join(f"{len(queries)} {name}" for name, queries in served.splits.items())
    return f"the environment {served.name} with {sizes} tasks (steptool {__version__})"


def _describe_split(name: str) -> dict[str, str]:
    return {"name": name, "type": _SPLIT_TYPES.get(name, name)}


def _list_tools(tools: Sequence[ToolSchema]) -> list[dict[str, Any]]:
    functions = [tool["function"] for tool in tools]
    return [
        {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]} for f in functions
    ]


def _read_message(text: str) -> dict[str, Any]:
    message: Any = None
    with suppress(ValueError, RecursionError):
        message = json.loads(text)
    if not isinstance(message, dict) or not isinstance(message.get("data") or {}, dict):
        raise ProtocolError("INVALID_JSON", "expected an object with type and data")
    return {"type": "", **message}


def _error(code: str, text: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": text, "code": code}}


def _has_key(request: HTTPConnection, key: str) -> bool:
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    return not key or secrets.compare_digest(sent.encode(), key.encode())
