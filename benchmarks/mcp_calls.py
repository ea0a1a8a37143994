"""Calls of an MCP server written with the SDK: over stdio in one session, and over HTTP in 64 sessions at once.

Prints lines `name: OURS OTHER RATIO` for the fastest of several runs, which alternate. Over stdio, a session of ours
with its limits, checks and threads is compared with the SDK's own client without any of these: by wall time, and by the
CPU time of this process, which leaves out the work of the server. Over HTTP, 64 sessions side by side are compared
with the same calls one after the other, for a tool that answers at once, where the server's one core is the limit, and
for one that takes 20 ms. The last lines count the right answers; the program exits with 1 unless all calls had one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
from anyio.from_thread import start_blocking_portal
from mcp import Client, StdioServerParameters, stdio_client
from mcp.types import TextContent

from steptool.config import ToolsConfig
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.environments.mcp.environment import McpEnvironment
from steptool.records import Query, ToolCall

SERVER = """
import sys
import anyio
from mcp.server.mcpserver import MCPServer

server = MCPServer("shelves", log_level="WARNING")

@server.tool()
def shelf(title: str) -> str:
    return "A3"

@server.tool()
async def remote_shelf(title: str) -> str:
    await anyio.sleep(0.02)
    return "A3"

if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run()
"""
COMMAND = [sys.executable, "-c", SERVER]
TOOLS = {"shelf": "a tool that answers at once", "remote_shelf": "a tool that takes 20 ms"}
ARGUMENTS, ANSWER = {"title": "atlas"}, "A3"
QUERY = Query("q", "train", McpEnvironment.name, "On which shelf is the atlas?", ())
CALLS, EPISODES, TURNS, REPEATS = 300, 64, 2, 5
START = 30.0
"""Seconds that the server has to start."""
Right = list[bool]
"""For each call, whether its answer was right."""
Run = Callable[[], Right]


def compare(name: str, measures: Sequence[str], ours: Run, other: Run) -> Right:
    """Print how many calls both make, by wall time and, if there is a second measure, by CPU time."""
    rates: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    outcomes: Right = []
    for _ in range(REPEATS):
        for run, measured in zip((ours, other), rates, strict=True):
            start = clock()
            right = run()
            measured.append(len(right) / (clock() - start))
            outcomes += right
    fast, slow = (np.max(measured, axis=0) for measured in rates)
    for number, measure in enumerate(measures):
        print(f"mcp {measure}, {name}: {fast[number]:.0f} {slow[number]:.0f} {fast[number] / slow[number]:.2f}")
    return outcomes


def clock() -> np.ndarray:
    """Seconds: of wall time, and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


@contextmanager
def open_limited_environment(**server: Any) -> Iterator[LimitedEnvironment]:
    """Our environment with the usual limits, except that all episodes may call at once."""
    limits = ToolsConfig.model_validate({"mcp": server, "concurrency": EPISODES})
    with closing(McpEnvironment(limits.mcp, limits.timeout)) as environment:
        yield LimitedEnvironment(environment, limits)


def ask(session: LimitedSession, tool: str = "shelf") -> bool:
    """One call of ours."""
    return session.call(ToolCall(tool, ARGUMENTS)).observation == ANSWER


async def ask_plainly(client: Client, times: int) -> Right:
    """Calls of the SDK's client."""
    results = [await client.call_tool("shelf", ARGUMENTS) for _ in range(times)]
    return [isinstance(part := result.content[0], TextContent) and part.text == ANSWER for result in results]


def compare_over_stdio() -> Right:
    """One session, a call after the other."""
    parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:])
    with (
        open_limited_environment(command=COMMAND) as environment,
        closing(environment.reset(QUERY)) as session,
        start_blocking_portal() as loop,
        loop.wrap_async_context_manager(Client(stdio_client(parameters), cache=None)) as client,
    ):
        first = [ask(session), *loop.call(ask_plainly, client, 1)]
        return first + compare(
            "one session over stdio",
            ("calls/s", "calls/s of CPU time"),
            lambda: [ask(session) for _ in range(CALLS)],
            lambda: loop.call(ask_plainly, client, CALLS),
        )


@contextmanager
def run_server() -> Iterator[str]:
    """Address of the server over HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.kill()


def wait_for(port: int) -> None:
    """Return once the port takes connections. Raises TimeoutError if it never does."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError(f"the server took no connection within {START:g} s")


def compare_over_http() -> Right:
    """A session for each episode, all on one server."""
    with run_server() as url, open_limited_environment(url=url) as environment:
        sessions = [environment.reset(QUERY) for _ in range(EPISODES)]
        right = ask_at_once(environment, sessions, "shelf", turns=1)
        for tool, name in TOOLS.items():
            at_once, in_turn = partial(ask_at_once, environment, sessions, tool), partial(ask_in_turn, sessions, tool)
            right += compare(f"{EPISODES} sessions over HTTP, {name}", ("calls/s",), at_once, in_turn)
        for session in sessions:
            session.close()
    return right


def ask_at_once(
    environment: LimitedEnvironment, sessions: Sequence[LimitedSession], tool: str, turns: int = TURNS
) -> Right:
    """Calls of all sessions side by side, as in a rollout."""
    right: Right = []
    for _ in range(turns):
        calls = [environment.submit(ask, session, tool) for session in sessions]
        right += [call.result() for call in calls]
    return right


def ask_in_turn(sessions: Sequence[LimitedSession], tool: str) -> Right:
    """The same calls one after the other."""
    return [ask(session, tool) for _ in range(TURNS) for session in sessions]


def main() -> None:
    """Compare both ways and count the right answers."""
    outcomes = {"stdio": compare_over_stdio(), "HTTP": compare_over_http()}
    for name, right in outcomes.items():
        print(f"mcp {name}: {sum(right)} of {len(right)} calls succeeded")
    load = os.getloadavg()[0]
    print(f"mcp: load {load:.1f} on {os.cpu_count()} cores")
    if not all(map(all, outcomes.values())):
        sys.exit(1)


if __name__ == "__main__":
    main()
