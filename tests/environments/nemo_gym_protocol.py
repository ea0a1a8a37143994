"""A resource server with counters, written after the source of nemo-gym 0.4: its routes, sessions by cookie, verdicts.

python nemo_gym_protocol.py PORT
"""

import json
import sys
import uuid
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

COOKIE = "StatefulCounterResourcesServer"
COUNTERS: dict[str, int] = {}


def reply(request: Request, session: str, content: Any) -> JSONResponse:
    """An answer that carries the session."""
    answer = JSONResponse(content)
    answer.set_cookie(COOKIE, session)
    return answer


async def seed(request: Request) -> JSONResponse:
    """Begin a session with a first count."""
    session = request.cookies.get(COOKIE) or str(uuid.uuid4())
    COUNTERS.setdefault(session, (await request.json())["initial_count"])
    return reply(request, session, {})


async def increment(request: Request) -> JSONResponse:
    """Add to the counter of the session; a count that is no number is refused as FastAPI does."""
    session, body = request.cookies[COOKIE], await request.json()
    if not isinstance(body.get("count"), int):
        return JSONResponse({"detail": [{"loc": ["body", "count"], "msg": "a valid integer is expected"}]}, 422)
    COUNTERS[session] += body["count"]
    return reply(request, session, {"success": True})


async def value(request: Request) -> JSONResponse:
    """Say the count of the session."""
    return reply(request, request.cookies[COOKIE], {"count": COUNTERS[request.cookies[COOKIE]]})


async def verify(request: Request) -> JSONResponse:
    """1 for a session whose count is the expected one. The conversation has to be in the form of responses."""
    body = await request.json()
    for item in body["response"]["output"]:
        assert item["type"] in ("function_call", "function_call_output", "message"), json.dumps(item)
    reward = float(COUNTERS[request.cookies[COOKIE]] == body["expected_count"])
    return reply(request, request.cookies[COOKIE], {**body, "reward": reward})


APP = Starlette(
    routes=[
        Route("/seed_session", seed, methods=["POST"]),
        Route("/increment_counter", increment, methods=["POST"]),
        Route("/get_counter_value", value, methods=["POST"]),
        Route("/verify", verify, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(APP, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
