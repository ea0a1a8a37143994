import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mcp_sessions import GOOD, World
from servers import start_server
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
    with start_server([sys.executable, GOOD[1]], quiet=True) as url:
        yield f"{url}/mcp"
