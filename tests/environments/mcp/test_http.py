import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mcp_sessions import ANEW, World, ask, observe, problem
from steptool.records import StepStatus


class Junk(BaseHTTPRequestHandler):
    """An HTTP server that answers the handshake rightly and a call with what the tool's name says."""

    headers_seen: list[str]

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.headers_seen.append(self.headers.get("authorization", ""))
        method = message["method"]
        if method == "initialize":
            about = {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "serverInfo": {"name": "junk", "version": "1"},
            }
            self.answer(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": about}))
        elif method == "tools/list":
            names = ["junk", "page", "fault", "cut", "gone", "fine", "gzip", "long", "longer", "shape"]
            tools = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}
            self.answer(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": tools}))
        elif method != "tools/call":
            self.answer(202 if "id" not in message else 404, "")
        else:
            self.call(message["params"]["name"], message["id"])

    def call(self, name: str, request: int) -> None:
        text = {"content": [{"type": "text", "text": "fine"}]}
        junk = {"junk": (200, "%%%"), "fault": (500, "<h1>oops</h1>"), "gone": (404, ""), "cut": (200, '{"jsonrpc"')}
        if name == "gzip":
            self.answer(200, gzip.compress(b" " * (64 << 20)), encoding="gzip")
        elif name == "shape":
            self.answer(200, json.dumps({"jsonrpc": "2.0", "id": request, "result": 5}))
        elif name == "long":
            self.answer(200, b" " * (9 << 20))
        elif name == "longer":
            self.answer_in_chunks(b" " * (1 << 20), 64)
        elif name == "page":
            self.answer(200, "<html></html>", "text/html")
        elif name == "cut":
            self.answer(200, '{"jsonrpc"', missing=100)
        elif name in junk:
            self.answer(*junk[name])
        else:
            self.answer(200, json.dumps({"jsonrpc": "2.0", "id": request, "result": text}))

    def answer_in_chunks(self, chunk: bytes, times: int) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with suppress(OSError):  # the client has read enough
            for _ in range(times):
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def answer(
        self, status: int, body: str | bytes, kind: str = "application/json", missing: int = 0, encoding: str = ""
    ) -> None:
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        if encoding:
            self.send_header("content-encoding", encoding)
        self.send_header("mcp-session-id", "s1")
        self.send_header("content-length", str(len(body) + missing))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)
        self.close_connection = bool(missing)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def junk_server(port: int = 0, handler: type[Junk] = Junk) -> Iterator[tuple[int, list[str]]]:
    """Its port and the authorization of every request."""
    observed: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (handler,), {"headers_seen": observed}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1], observed
    finally:
        server.shutdown()
        server.server_close()


def test_a_request_over_http_without_an_answer_is_called_off_alone(world: Callable[..., World], http: str) -> None:
    shared = world(url=http, timeout=3.0, shared=True)
    waiting, other = shared.session(), shared.session()
    calls_off = int(observe(other, "waits"))
    unanswered, answers = shared.guard.submit(problem, waiting, "wait"), shared.guard.submit(observe, other, "waits")
    assert (unanswered.result(), answers.result()) == ("no answer within 2.7 s", str(calls_off))
    assert observe(waiting, "waits") == str(calls_off + 1)


def test_a_server_that_stops_and_starts_again_costs_the_steps_between(world: Callable[..., World]) -> None:
    with junk_server() as (port, _):
        session = world(url=f"http://127.0.0.1:{port}/mcp", retries=1).session()
        assert observe(session, "fine") == "fine"
    assert problem(session, "fine") == f"the server was lost{ANEW}"
    assert problem(session, "fine").startswith("the tool cannot be reached: http://127.0.0.1")
    with junk_server(port):
        assert observe(session, "fine") == "fine"


def test_junk_over_http_costs_its_step_only(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    unreadable = "the answer of the server 'junk'"
    reasons = {
        "junk": f"{unreadable} to 'junk' cannot be read: expected a message of JSON-RPC 2.0 with ",
        "shape": f"{unreadable} to 'shape' cannot be read: expected a message of JSON-RPC 2.0 with ",
        "page": "Unexpected content type: text/html",
        "fault": "Server returned an error response",
        "cut": f"the server was lost{ANEW}",
        "gone": f"the server was lost{ANEW}",
        "gzip": "the server compresses its answers (gzip) without being asked to",
        "long": "the answer is longer than 8 MiB",
        "longer": f"{unreadable} to 'longer' cannot be read: the answer is longer than 8 MiB",
    }
    with junk_server() as (port, seen):
        authorization = {"Authorization": "Bearer ${SECRET}"}
        session = world(url=f"http://127.0.0.1:{port}/mcp", headers=authorization).session()
        for tool, reason in reasons.items():
            message = problem(session, tool)
            assert message.startswith(reason) and "validation error" not in message
            assert observe(session, "fine") == "fine"
    assert set(seen) == {"Bearer s3cret"}


@pytest.mark.parametrize("closes_after", [{500}, {500, 200}])
@pytest.mark.parametrize("wait", [0.0, 0.02])
def test_no_call_is_lost_where_the_server_closes_connections_without_saying_so(
    world: Callable[..., World], closes_after: set[int], wait: float
) -> None:
    """The server keeps connections open, and ends one a moment after an answer with such a status."""

    class Closing(Junk):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, *rest: Any, **named: Any) -> None:
            super().answer(status, *rest, **named)
            if status in closes_after:
                self.wfile.flush()
                time.sleep(wait)
                self.close_connection = True

    with junk_server(handler=Closing) as (port, seen):
        session = world(url=f"http://127.0.0.1:{port}/mcp").session()
        results = [ask(session, tool) for tool in ("fault", "fine") * 20]
    assert [result.status for result in results] == [StepStatus.TOOL_ERROR, StepStatus.OK] * 20
    assert {result.observation for result in results[1::2]} == {"fine"}
    assert len(seen) <= 40 + 4  # the handshake and the list; no call was sent twice
