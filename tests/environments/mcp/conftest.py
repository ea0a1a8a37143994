import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mcp_sessions import GOOD, World
from steptool.config import ToolsConfig


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    opened: list[World] = []

    def build(timeout: float = 20.0, retries: int = 0, **server: Any) -> World:
        limits = ToolsConfig.model_validate({"timeout": timeout, "retries": retries, "mcp": server, "concurrency": 64})
        opened.append(World(limits))
        return opened[-1]

    yield build
    for each in opened:
        each.environment.close()


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    """Address of the good server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, GOOD[1], str(port)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/mcp"
    server.kill()
    server.wait()
