"""Our environments and tasks behind OpenEnv's protocol, for any agent and trainer that speaks it.

A client plays an episode over a WebSocket: `reset` begins a task, and `step` with a call of a tool makes a turn. The
call of Finish ends the episode, and its reward is the verdict. Turns, limits and endings are those of our own rollouts,
except with `rollout.finish: text`: the protocol knows only calls, so that each task has Finish.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from threading import BoundedSemaphore
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from steptool import __version__
from steptool.artifacts.errors import describe_with_class
from steptool.chat.call_format import ParsedTurn, offer_tools
from steptool.chat.messages import read_call, read_json
from steptool.config import ToolsConfig
from steptool.environments.adapters import import_package
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.http_server import TooLargeError, has_key, read_body, read_key, run_server
from steptool.records import Query, StepStatus
from steptool.rollout.episode import Episode, Turn

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


F = TypeVar("F", str, int)


class ProtocolError(Exception):
    """A message that cannot be answered; `code` is one of OpenEnv's."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ServedEnvironment:
    """An environment with its tasks by split. Any number of threads may use it."""

    def __init__(self, environment: Environment, queries: Sequence[Query], limits: ToolsConfig, max_steps: int) -> None:
        self.name, self.max_steps, self.concurrency = environment.name, max_steps, limits.concurrency
        self.environment = LimitedEnvironment(environment, limits)
        self.splits: dict[str, list[Query]] = {}
        for query in queries:
            self.splits.setdefault(query.split, []).append(query)

    def find(self, arguments: Mapping[str, Any]) -> Query:
        """The task of a reset: by `task_id`, by `split` and `index`, or the first split's by `seed`.

        Raises ProtocolError for a task that is not there.
        """
        task_id = arguments.get("task_id")
        if task_id is not None:
            queries = [query for queries in self.splits.values() for query in queries if query.query_id == task_id]
            index = 0
        else:
            queries = self.splits.get(_read_field(arguments, "split", str, next(iter(self.splits))), [])
            seed = _read_field(arguments, "seed", int, 0) % max(1, len(queries))
            index = _read_field(arguments, "index", int, seed)
        if not 0 <= index < len(queries):
            sizes = {name: len(tasks) for name, tasks in self.splits.items()}
            request = str(dict(arguments))[:200]
            raise ProtocolError(
                "EXECUTION_ERROR", f"no such task: the splits have {sizes} tasks, the request was {request}"
            )
        return queries[index]


class EpisodeConnection:
    """The connection of one client, which plays one episode after the other."""

    def __init__(self, served: ServedEnvironment) -> None:
        self._served = served
        self._episode: Episode | None = None

    def answer(self, text: str | bytes) -> dict[str, Any] | None:
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
            return _make_error(error.code, str(error))
        except Exception as error:
            return _make_error("EXECUTION_ERROR", describe_with_class(error))

    def close(self) -> None:
        """Drop the episode that was not finished."""
        if self._episode:
            self._episode.close()

    def _reset(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        query = self._served.find(arguments)
        self.close()
        self._episode = None
        episode = Episode(query, max_steps=self._served.max_steps)
        episode.begin(self._served.environment)
        self._episode = episode
        observation = {"instruction": query.instruction, "tools": _list_tools(query), "task_id": query.query_id}
        return {"observation": observation, "reward": None, "done": False}

    def _step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        if action.get("type") == "list_tools":
            query = self._episode.query if self._episode else self._served.find({})
            return {"observation": {"tools": _list_tools(query)}, "reward": None, "done": False}
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
    room, threads = BoundedSemaphore(served.concurrency), CapacityLimiter(served.concurrency)

    async def play(websocket: WebSocket) -> None:
        if not has_key(websocket, key):
            await websocket.close(code=1008)
            return
        await websocket.accept()
        if not room.acquire(blocking=False):
            await websocket.send_json(
                _make_error("CAPACITY_REACHED", "all sessions are taken; raise tools.concurrency")
            )
            await websocket.close()
            return
        try:
            await _play(websocket, served, threads)
        finally:
            room.release()

    guard = partial(_guard, served, key)
    return Starlette(
        routes=[
            WebSocketRoute("/ws", play),
            Route("/health", _answer_health),
            Route("/metadata", guard(lambda _: {"name": served.name, "description": _describe(served)})),
            Route("/schema", guard(lambda _: {"action": _ACTION_SCHEMA, "observation": {}, "state": {}})),
            Route("/list_environments", guard(lambda _: [served.name])),
            Route("/{name}/splits", guard(lambda _: [_describe_split(name) for name in served.splits])),
            Route(
                "/{name}/tasks",
                guard(lambda body: {"tasks": _list_tasks(served, body), "env_name": served.name}),
                methods=["POST"],
            ),
            Route(
                "/{name}/num_tasks", guard(lambda body: {"num_tasks": len(_list_tasks(served, body))}), methods=["POST"]
            ),
            Route("/{name}/task", guard(lambda body: {"task": _find_task(served, body)}), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _answer_http_error},
    )


async def _play(websocket: WebSocket, served: ServedEnvironment, threads: CapacityLimiter) -> None:
    """Answer the messages of one client until it or the connection ends."""
    connection = EpisodeConnection(served)
    try:
        while answer := await run_sync(connection.answer, await _receive(websocket), limiter=threads):
            await websocket.send_json(answer)
        await websocket.close()
    except WebSocketDisconnect:
        pass
    finally:
        await run_sync(connection.close, limiter=threads)


async def _answer_health(_: Request) -> Response:
    return JSONResponse({"status": "healthy"})


def _guard(
    served: ServedEnvironment, key: str, answer: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Request], Awaitable[Response]]:
    """A handler that checks key, environment and body, and turns what is wrong into errors of the protocol."""

    async def handle(request: Request) -> Response:
        if not has_key(request, key):
            return _refuse(401, "the key is missing or wrong")
        name = request.path_params.get("name", served.name)
        if name.lower() != served.name.lower():
            return _refuse(404, f"there is no environment '{name[:100]}' here; this server has '{served.name}'")
        try:
            return JSONResponse(answer(_read_object(await read_body(request)) if request.method == "POST" else {}))
        except TooLargeError as error:
            return _refuse(413, str(error))
        except ProtocolError as error:
            return _refuse(400, str(error))

    return handle


def _list_tasks(served: ServedEnvironment, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tasks of the split that a request names."""
    queries = served.splits.get(_read_field(body, "split", str, ""))
    if queries is None:
        raise ProtocolError("EXECUTION_ERROR", f"split: expected one of {', '.join(served.splits)}")
    return [{"id": q.query_id, "instruction": q.instruction, "tier": q.tier} for q in queries]


def _find_task(served: ServedEnvironment, body: Mapping[str, Any]) -> dict[str, Any]:
    """The task that a request names by split and index."""
    tasks, index = _list_tasks(served, body), _read_field(body, "index", int, -1)
    if not 0 <= index < len(tasks):
        raise ProtocolError("EXECUTION_ERROR", f"index: expected a number below {len(tasks)}, got {index}")
    return tasks[index]


def serve(served: ServedEnvironment, host: str, port: int) -> None:
    """Serve until the process is told to end; port 0: a free one.

    Raises ConfigError for an address that others reach without a key, and without the package for WebSockets.
    """
    import_package("websockets", "serve-env", "steptool[environments]")
    app = make_app(served, read_key(host))
    run_server(app, host, port, _describe(served), sessions=served.concurrency)


def _describe(served: ServedEnvironment) -> str:
    sizes = ", ".join(f"{len(queries)} {name}" for name, queries in served.splits.items())
    return f"the environment {served.name} with {sizes} tasks (steptool {__version__})"


def _describe_split(name: str) -> dict[str, str]:
    return {"name": name, "type": _SPLIT_TYPES.get(name, name)}


def _list_tools(query: Query) -> list[dict[str, Any]]:
    functions = [tool["function"] for tool in offer_tools(query.tools, "tool")]
    return [
        {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]} for f in functions
    ]


def _read_message(text: str | bytes) -> dict[str, Any]:
    message = {"type": "", "data": None, **_read_object(text)}
    if not isinstance(message["type"], str) or not isinstance(message["data"] or {}, dict):
        raise ProtocolError("INVALID_JSON", "expected a text as type and an object as data")
    return message


def _read_object(text: str | bytes) -> dict[str, Any]:
    try:
        value = read_json(text.decode() if isinstance(text, bytes) else text)
    except ValueError as error:
        raise ProtocolError("INVALID_JSON", f"expected an object in JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("INVALID_JSON", f"expected an object in JSON, got {str(value)[:100]}")
    return value


def _read_field(fields: Mapping[str, Any], name: str, kind: type[F], default: F) -> F:
    """The field, or the default where it is missing or null. Raises ProtocolError for a value of another type."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ProtocolError("VALIDATION_ERROR", f"{name}: expected a value of type {kind.__name__}, got {value!r:.100}")
    return value


async def _receive(websocket: WebSocket) -> str | bytes:
    """The next message, of text or of bytes. Raises WebSocketDisconnect."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    text, data = message.get("text"), message.get("bytes")
    return data or b"" if text is None else text


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refuse(error.status_code, error.detail)


def _refuse(status: int, text: str) -> Response:
    return JSONResponse({"detail": text}, status_code=status)


def _make_error(code: str, text: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": text, "code": code}}
