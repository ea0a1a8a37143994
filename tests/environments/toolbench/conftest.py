"""A real server of the protocol on loopback, and a query."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from steptool.records import Query, Reference

Reply = tuple[int, bytes] | None


class Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16
    server: VirtualServer

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        reply = self.server.answer(body)
        if reply is None:  # hangs up without a word
            self.close_connection = True
            return
        self.send_response(reply[0])
        self.send_header("Content-Length", str(len(reply[1])))
        self.end_headers()
        self.wfile.write(reply[1])
        self.wfile.flush()
        if reply[0] in self.server.closes_after:  # a moment later, and without a header that says so
            time.sleep(0.02)
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class VirtualServer(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, answer: Callable[[dict[str, str]], Reply], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.connections = answer, 0
        self.closes_after: set[int] = set()
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/virtual"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., VirtualServer]]:
    """Start a server whose answers are those of a function from the request to (HTTP status, body)."""
    started: list[VirtualServer] = []

    def start(answer: Callable[[dict[str, str]], Reply], port: int = 0) -> VirtualServer:
        started.append(VirtualServer(answer, port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def say() -> Callable[..., tuple[int, bytes]]:
    """A reply of the protocol."""

    def reply(response: Any, error: str = "") -> tuple[int, bytes]:
        return 200, json.dumps({"error": error, "response": response}).encode()

    return reply


@pytest.fixture
def query() -> Query:
    """A query with one tool of a known API and one whose API is not known."""
    parameters = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
    tools = tuple(
        {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}
        for name in ("forecast_for_sky_watch", "tides_for_sea")
    )
    apis = {"forecast_for_sky_watch": ["Weather", "sky_watch", "forecast"]}
    return Query("q", "train", "toolbench", "Will it rain?", tools, Reference(environment={"toolbench": apis}))
