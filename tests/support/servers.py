"""Servers of tests on free ports of this machine: programs, and applications in a thread."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import uvicorn
from starlette.applications import Starlette


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON and prints nothing."""

    def answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve_app(app: Starlette) -> Iterator[str]:
    """Serve an application in a thread; yields its http address. At the end open requests have a second left."""
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    listener = config.bind_socket()
    listener.listen()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def serve_bytes(send: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server whose answer to each request is what `send` writes to the connection; yields its http address."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client may be gone
            while b"\r\n\r\n" not in connection.recv(1 << 16):
                pass
            send(connection)

    def accept() -> None:
        with suppress(OSError):  # the end
            while True:
                threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def start_server(command: Sequence[str], seconds: float = 120, quiet: bool = False) -> Iterator[str]:
    """Start a program with a free port as its last argument; yields http://127.0.0.1:port once it takes connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = subprocess.DEVNULL if quiet else None
    with subprocess.Popen([*command, str(port)], stdout=output, stderr=output) as process:
        try:
            _wait_for(port, process, time.monotonic() + seconds)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes], deadline: float) -> None:
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(
        f"{process.args!r} took no connection at port {port}; it has ended: {process.poll() is not None}"
    )
