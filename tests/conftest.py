"""A chat endpoint on loopback that answers or fails as a test says, an S3 store, public data and small trajectories."""

import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from steptool.records import FINISH, Query, Step, StepStatus, StopReason, ToolCall, Trajectory

settings.register_profile("any machine", deadline=None)  # a loaded machine is not a fault
settings.load_profile("any machine")

# Temporary files of the tests and of their processes go to a folder of their own, which ends with the tests. It is made
# here because flytekit makes a folder when it is imported, and other conftest files import it. tmp_path is elsewhere.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
TEMPORARY = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="steptool-tests-")


def pytest_unconfigure() -> None:
    shutil.rmtree(TEMPORARY, ignore_errors=True)


@pytest.fixture
def real_data() -> Path:
    """The folder with data of others, beside the project's, where it is there."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data is not on this machine")
    return folder


@dataclass
class Answer:
    """What goes back over the wire: a chat completion with this message, or whatever `body` holds."""

    message: dict[str, Any] = field(default_factory=lambda: {"role": "assistant", "content": "hello"})
    body: str | bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False  # the connection ends in the middle of the body

    def wire(self) -> bytes:
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        whole = json.dumps({"choices": [{"message": self.message}], "usage": usage})
        body = whole if self.body is None else self.body
        return body if isinstance(body, bytes) else body.encode()


class ChatServer(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256

    def __init__(self, behaviour: Callable[[dict[str, Any], int], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour, self.lock = behaviour, threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.closes_after: set[int] = set()
        """HTTP statuses after which the server closes the connection."""
        self.running = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def texts(self) -> list[str]:
        return [r["messages"][-1]["content"] for r in self.requests]

    def handle_error(self, *_: Any) -> None:
        """A client may be gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(request)
            server.times.append(time.monotonic())
            server.keys.add(self.headers["Authorization"])
            server.running += 1
            server.most = max(server.most, server.running)
            answer = server.behaviour(request, len(server.requests))
        time.sleep(answer.delay)
        with server.lock:
            server.running -= 1
        self._send(answer, answer.wire())

    def _send(self, answer: Answer, body: bytes) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if answer.cut else body)
        self.close_connection = answer.cut
        if answer.status in self.server.closes_after:  # a moment later, and without a header that says so
            self.wfile.flush()
            time.sleep(0.02)
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def call(name: str, arguments: Any) -> Answer:
    """A message that calls a function; arguments that are no text are made JSON."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    called = {"id": "c1", "type": "function", "function": {"name": name, "arguments": text}}
    return Answer({"role": "assistant", "content": None, "tool_calls": [called]})


@pytest.fixture
def chat() -> Iterator[SimpleNamespace]:
    """`Answer`, `call`, and `serve(behaviour)`, where behaviour(request, its number from 1) gives the Answer."""
    servers: list[ChatServer] = []

    def serve(behaviour: Callable[[dict[str, Any], int], Answer]) -> ChatServer:
        servers.append(ChatServer(behaviour))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield SimpleNamespace(Answer=Answer, call=call, serve=serve)
    for server in servers:
        server.shutdown()
        server.server_close()


S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The url of an empty bucket in an S3 server on loopback, which this process and its children can reach."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    store = fsspec.get_filesystem_class("s3")
    store.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    store().mkdir(name)
    yield f"s3://{name}"
    store.clear_instance_cache()
    server.stop()


QUERY = Query("q1", "train", "desk", "cancel the last order of mira chen", ())


@pytest.fixture
def make_query() -> Callable[..., Query]:
    def make(**changes: Any) -> Query:
        return replace(QUERY, **changes)

    return make


@pytest.fixture
def make_step() -> Callable[..., Step]:
    def make(name: str, observation: Any, status: StepStatus = StepStatus.OK, /, **arguments: Any) -> Step:
        text = observation if isinstance(observation, str) else json.dumps(observation)
        return Step(ToolCall(name, arguments), status, text)

    return make


@pytest.fixture
def make_trajectory() -> Callable[..., Trajectory]:
    def make(steps: Sequence[Step], answer: str | None = None, **changes: Any) -> Trajectory:
        """The steps, and a Finish with the answer if there is one."""
        finish = Step(ToolCall(FINISH, {"return_type": "give_answer", "final_answer": answer}), StepStatus.FINISH, "")
        all_steps = (*steps, *([] if answer is None else [finish]))
        trajectory = Trajectory(
            trajectory_id="t1",
            query_id="q1",
            environment="desk",
            tier="single",
            policy="p",
            round=0,
            sample=0,
            temperature=1.0,
            messages=[],
            input_ids=np.zeros(0, dtype=np.int32),
            spans=[],
            logprobs=np.zeros(0, dtype=np.float32),
            steps=all_steps,
            stop_reason=StopReason.STEP_LIMIT if answer is None else StopReason.FINISHED,
            final_answer=answer,
            solved=None,
            seconds=0.5,
        )
        return replace(trajectory, **changes)

    return make
