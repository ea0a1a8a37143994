"""The speed of the file of recorded responses: hits per second in ToolBench's environment among 50,000 recorded calls.

Prints lines `name: OURS OTHER RATIO` for the fastest of several runs, which alternate. Alone, the file is compared with
a dict of JSON keys in memory, the least that could be done. In front of a server, where calls run in a thread within
their time limit, it is compared with asking a server on this machine that answers at once.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from steptool.config import ToolBenchConfig, ToolsConfig
from steptool.environments.base import ToolResult
from steptool.environments.limits import LimitedEnvironment
from steptool.environments.replay import Responses, make_call_key
from steptool.environments.toolbench import ToolBenchEnvironment
from steptool.records import Query, Reference, StepStatus, ToolCall

RECORDED, HITS, SERVER_CALLS, REPEATS = 50_000, 10_000, 500, 5
NAME, ENDPOINT = "forecast_for_sky_watch", ("Weather", "sky_watch", "forecast")
PROPERTIES = {"town": {"type": "string"}, "days": {"type": "integer"}}
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "The weather of the next days",
        "parameters": {"type": "object", "properties": PROPERTIES, "required": ["town"]},
    },
}
REFERENCE = Reference(environment={"toolbench": {NAME: list(ENDPOINT)}})
QUERY = Query("q", "train", "toolbench", "Will it rain?", (TOOL,), REFERENCE)
NOBODY = "http://127.0.0.1:1/virtual"
"""Nobody listens there, so that a call that is not recorded fails."""
WEATHER = "Light rain from the west, clearing in the evening; winds of 20 km/h. " * 12
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"{json.loads(request['tool_input'])['town']}: {sys.argv[1]}"
        body = json.dumps({"error": "", "response": text}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
Run = Callable[[], Sequence[str]]
"""Makes calls and returns their observations."""


def observation(call: ToolCall) -> str:
    """The weather service's answer to a call."""
    return json.dumps({"error": "", "response": f"{call.arguments['town']}: {WEATHER}"})


def compare(name: str, ours: Run, other: Run) -> None:
    """Print how many calls both make, by wall time and by this process's CPU time."""
    rates: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for _ in range(REPEATS):
        for run, measured in zip((ours, other), rates, strict=True):
            start = clock()
            count = len(run())
            measured.append(count / (clock() - start))
    for measure, *best in zip(("s", "s of CPU time"), *(np.max(measured, axis=0) for measured in rates), strict=True):
        print(f"responses hits/{measure}, {name}: {best[0]:.0f} {best[1]:.0f} {best[0] / best[1]:.2f}")


def clock() -> np.ndarray:
    """Seconds: of wall time, and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


@contextmanager
def open_session(calls: Sequence[ToolCall], **settings: str) -> Iterator[Run]:
    """Makes the calls in one session of our environment with these settings."""
    with closing(
        ToolBenchEnvironment.open(ToolsConfig(toolbench=ToolBenchConfig.model_validate(settings)))
    ) as environment:
        session = LimitedEnvironment(environment, ToolsConfig()).reset(QUERY)
        yield lambda: [session.call(call).observation for call in calls]
        session.close()


def look_up(responses: dict[str, str], calls: Sequence[ToolCall]) -> list[str]:
    """The calls looked up in memory."""
    return [responses[json.dumps([call.name, call.arguments], sort_keys=True)] for call in calls]


@contextmanager
def run_server() -> Iterator[str]:
    """Address of the server."""
    command = [sys.executable, "-c", SERVER, WEATHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/virtual"
        finally:
            server.kill()


def record(file: Path, calls: Sequence[ToolCall]) -> None:
    """Write the file."""
    start = time.perf_counter()
    with closing(Responses(file)) as responses:
        responses.add((make_call_key(ENDPOINT, c.arguments), ToolResult(StepStatus.OK, observation(c))) for c in calls)
    took = time.perf_counter() - start
    print(f"responses: {len(calls)} calls recorded in {took:.1f} s, {file.stat().st_size >> 20} MiB")


def main() -> None:
    """Record the responses, check that all ways give the same, then time them."""
    recorded = [ToolCall(NAME, {"town": f"town {n}", "days": n % 7}) for n in range(RECORDED)]
    hits = random.Random(0).sample(recorded, HITS)
    some, expected = hits[:SERVER_CALLS], [observation(call) for call in hits]
    memory = {json.dumps([c.name, c.arguments], sort_keys=True): observation(c) for c in recorded}
    with tempfile.TemporaryDirectory() as folder, run_server() as url:
        file = Path(folder) / "responses.sqlite"
        record(file, recorded)
        with (
            open_session(hits, cache=str(file)) as offline,
            open_session(hits, cache=str(file), url=NOBODY) as in_front,
            open_session(some, url=url) as server,
        ):
            assert offline() == in_front() == look_up(memory, hits) == expected
            assert server() == expected[:SERVER_CALLS]
            compare("the file alone against a dict", offline, lambda: look_up(memory, hits))
            compare("the file in front of a server against the server", in_front, server)
    print(f"responses: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
