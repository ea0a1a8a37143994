"""What our two servers share: the key, the largest request, and how they start and end."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Callable
from typing import TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request

from steptool.config import ConfigError

LARGEST_REQUEST = 4 << 20
"""Bytes of a request or of a message, at most."""
KEY_VARIABLE = "STEPTOOL_API_KEY"
"""Environment variable with the key that requests must send. If it is unset, they need no key."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONNECTIONS = 256
"""Connections at once; further ones are answered 503."""
_ENDING = 10
"""Seconds that a server which has been told to end waits for the requests that it answers."""
T = TypeVar("T")


class TooLargeError(Exception):
    """A request is larger than the limit."""

    def __init__(self) -> None:
        super().__init__(f"the request has more than {LARGEST_REQUEST >> 20} MB")


def read_key(host: str) -> str:
    """The key that clients must send; empty: none. Raises ConfigError for an address that others reach without one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and host not in _LOOPBACK:
        raise ConfigError(
            f"--host {host} can be reached from other machines: set a key in {KEY_VARIABLE}, or serve on 127.0.0.1"
        )
    return key


def has_key(connection: HTTPConnection, key: str) -> bool:
    """Whether a request has the key as its bearer token, or none is needed."""
    sent_key = connection.headers.get("authorization", "").removeprefix("Bearer ")
    return not key or secrets.compare_digest(sent_key.encode(), key.encode())


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises TooLargeError once it is longer than LARGEST_REQUEST."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_REQUEST:
            raise TooLargeError
    return bytes(body)


async def run_for_client(request: Request, work: Callable[[threading.Event], T]) -> T:
    """What the work returns, done in a thread. Its event is set once nobody waits for the answer any more.

    The body of the request has to be read before.
    """
    abandoned = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        abandoned.set()

    watcher = asyncio.create_task(watch())
    try:
        return await run_in_threadpool(work, abandoned)
    finally:
        abandoned.set()  # the server may end before the work does
        watcher.cancel()


def run_server(app: Starlette, host: str, port: int, what: str, *, path: str = "", sessions: int = 0) -> None:
    """Serve until the process is told to end; port 0: a free one. Prints `what` is served, and its address.

    `sessions` is the number of connections that may stay open beside those of single requests.
    """
    config = uvicorn.Config(
        app,
        host,
        port,
        log_level="warning",
        limit_concurrency=_CONNECTIONS + sessions,
        timeout_graceful_shutdown=_ENDING,
        ws_max_size=LARGEST_REQUEST,
    )
    listener = config.bind_socket()
    listener.listen()  # a client may connect as soon as the next line is printed
    print(f"serving {what} at http://{host}:{listener.getsockname()[1]}{path}", flush=True)
    uvicorn.Server(config).run([listener])
