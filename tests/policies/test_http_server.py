"""What our servers share, with a real server and clients that leave."""

import threading
from collections.abc import Iterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from servers import serve_app
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
def address() -> Iterator[str]:
    with serve_app(Starlette(routes=[Route("/", answer, methods=["POST"])])) as address:
        yield address


def test_the_work_for_a_client_that_leaves_is_told_so(address: str) -> None:
    ENDED.clear()
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(address, content=b"wait", timeout=httpx2.Timeout(20, read=0.5))
    for _ in range(100):
        if not ENDED:
            threading.Event().wait(0.1)
    assert ENDED == [True]


def test_a_body_is_read_up_to_the_limit(address: str) -> None:
    assert httpx2.post(address, content=b"x" * LARGEST_REQUEST, timeout=60).text == str(LARGEST_REQUEST)
    refused = httpx2.post(address, content=b"x" * (LARGEST_REQUEST + 1), timeout=60)
    assert (refused.status_code, refused.text) == (413, "the request has more than 4 MB")
