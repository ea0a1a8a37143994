"""What our servers share, with a real server and clients that leave."""

import threading
from collections.abc import Iterator

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from steptool.policies.http_server import LARGEST_REQUEST, TooLargeError, read_body, run_for_client

ENDED: list[bool] = []
"""Whether the work of each request has ended because nobody waited any more."""


def wait_for_the_end(abandoned: threading.Event) -> str:
    ENDED.append(abandoned.wait(20))
    return "done"


async def answer(request: Request) -> Response:
    try:
        body = await read_body(request)
    except TooLargeError as error:
        return PlainTextResponse(str(error), 413)
    return PlainTextResponse(await run_for_client(request, wait_for_the_end) if body == b"wait" else str(len(body)))


@pytest.fixture
def server() -> Iterator[uvicorn.Server]:
    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    listener = config.bind_socket()
    listener.listen()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    server.config.port = listener.getsockname()[1]
    yield server
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_the_work_for_a_client_that_leaves_is_told_so(server: uvicorn.Server) -> None:
    ENDED.clear()
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"http://127.0.0.1:{server.config.port}", content=b"wait", timeout=httpx2.Timeout(20, read=0.5))
    for _ in range(100):
        if not ENDED:
            threading.Event().wait(0.1)
    assert ENDED == [True]


def test_a_body_is_read_up_to_the_limit(server: uvicorn.Server) -> None:
    address = f"http://127.0.0.1:{server.config.port}"
    assert httpx2.post(address, content=b"x" * LARGEST_REQUEST, timeout=60).text == str(LARGEST_REQUEST)
    refused = httpx2.post(address, content=b"x" * (LARGEST_REQUEST + 1), timeout=60)
    assert (refused.status_code, refused.text) == (413, "the request has more than 4 MB")
