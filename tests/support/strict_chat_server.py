"""A real HTTP server that speaks OpenAI's chat completions and refuses what is not well formed."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from servers import JsonHandler
from steptool.chat.endpoint import Endpoint
from steptool.config import EndpointConfig
from steptool.records import FINISH

Message = dict[str, Any]
Brain = Callable[[list[Message]], Message | str | int]
"""What is said to a conversation: a message, the words of a 400, or the number of another failure."""


def calls(*made: tuple[str, Any], text: str | None = None) -> Message:
    """A reply with calls; arguments as an object, or as the text that the server writes."""
    tool_calls = [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)},
        }
        for n, (name, arguments) in enumerate(made)
    ]
    return {"role": "assistant", "content": text, "tool_calls": tool_calls}


def finish(answer: str) -> Message:
    return calls((FINISH, {"return_type": "give_answer", "final_answer": answer}))


def fault(request: dict[str, Any]) -> str:
    """What a strict server finds wrong with a request."""
    messages = request["messages"]
    user, *turns = messages[1:] if messages[0]["role"] == "system" else messages
    if user["role"] != "user" or not all(t["type"] == "function" for t in request["tools"]):
        return "expected system, user and tools"
    if len(turns) % 3 == 0 and turns and turns[-1]["role"] == "user" and turns[-2]["role"] == "tool":
        turns = turns[:-1]  # the user goes on
    for turn, answer in zip(turns[::2], turns[1::2], strict=True):
        for call in turn.get("tool_calls", []):
            arguments = call["function"]["arguments"]
            json.loads(arguments or "{}") if isinstance(arguments, str) else dict(arguments)
            if (answer["role"], answer["tool_call_id"]) != ("tool", call["id"]) or len(turn["tool_calls"]) > 1:
                return "each call needs its answer"
        if "tool_calls" not in turn and not (turn["content"] and answer["role"] == "user"):
            return "text needs a text"
    return ""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, brain: Brain) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.brain, self.requests = brain, []


class Handler(JsonHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        problem = "no such path" if self.path != "/v1/chat/completions" else fault(request)
        reply = problem or self.server.brain(request["messages"])
        if not isinstance(reply, dict):
            status = reply if isinstance(reply, int) else 400
            self.answer({"error": {"message": str(reply)}}, status)
            return
        self.answer(
            {
                "id": "x", "object": "chat.completion", "created": 0, "model": request["model"],
                "choices": [{"index": 0, "finish_reason": reply.get("finish_reason", "stop"), "message": reply}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            },
        )  # fmt: skip


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Endpoint, Server]]]:
    """An endpoint of a server with that brain."""
    opened: list[tuple[Endpoint, Server]] = []

    def start(brain: Brain, **settings: Any) -> tuple[Endpoint, Server]:
        server = Server(brain)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1"
        config = EndpointConfig(base_url=address, model="scripted", key_variable="NO_KEY_HERE", retries=0, **settings)
        opened.append((Endpoint(config), server))
        return opened[-1]

    yield start
    for endpoint, server in opened:
        with closing(endpoint), server:
            server.shutdown()


def turn_of(messages: list[Message]) -> int:
    return sum(m["role"] == "assistant" for m in messages)


def script(*turns: Message) -> Brain:
    return lambda messages: turns[turn_of(messages)]
