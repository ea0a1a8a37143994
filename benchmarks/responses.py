"""The file of recorded responses: hits a second through ToolBench's environment, among 50,000 recorded calls.

Prints lines `name: OURS OTHER RATIO`, of the fastest of several runs of both in turns. Alone, the file stands against
the least that could be done, a dict of JSON keys in memory. In front of a server, where calls run in a thread within
their time limit, it stands against asking the server: one on this machine that answers at once.
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
from steptool.environments.replay.responses import Responses, call_key
from steptool.environments.toolbench.environment import ToolBenchEnvironment
from steptool.records import Query, Reference, StepStatus, ToolCall

RECORDED, HITS, ASKED, REPEATS = 50_000, 10_000, 500, 5
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
"""A call that is not recorded fails here, so that all that bring something are hits."""
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
"""Makes calls and returns what they brought."""


def observation(call: ToolCall) -> str:
    """What the weather service says."""
    return json.dumps({"error": "", "response": f"{call.arguments['town']}: {WEATHER}"})


def compare(name: str, ours: Run, other: Run) -> None:
    """Print how many calls both make, by wall time and by this process's CPU time."""
    rates: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for _ in range(REPEATS):
        for run, found in zip((ours, other), rates, strict=True):
            began = clock()
            count = len(run())
            found.append(count / (clock() - began))
    for measure, *best in zip(("s", "s of CPU time"), *(np.max(found, axis=0) for found in rates), strict=True):
        print(f"responses hits/{measure}, {name}: {best[0]:.0f} {best[1]:.0f} {best[0] / best[1]:.2f}")


def clock() -> np.ndarray:
    """Seconds: of wall time, and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


@contextmanager
def asking(calls: Sequence[ToolCall], **settings: str) -> Iterator[Run]:
    """The calls in one session of our environment with such settings."""
    with closing(
        ToolBenchEnvironment.open(ToolsConfig(toolbench=ToolBenchConfig.model_validate(settings)))
    ) as environment:
        session = LimitedEnvironment(environment, ToolsConfig()).reset(QUERY)
        yield lambda: [session.call(call).observation for call in calls]
        session.close()


def from_dict(responses: dict[str, str], calls: Sequence[ToolCall]) -> list[str]:
    """The calls looked up in memory."""
    return [responses[json.dumps([call.name, call.arguments], sort_keys=True)] for call in calls]


@contextmanager
def served() -> Iterator[str]:
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
    began = time.perf_counter()
    with closing(Responses(file)) as responses:
        responses.add((call_key(ENDPOINT, c.arguments), ToolResult(StepStatus.OK, observation(c))) for c in calls)
    took = time.perf_counter() - began
    print(f"responses: {len(calls)} calls recorded in {took:.1f} s, {file.stat().st_size >> 20} MiB")


def main() -> None:
    """Record, check that all bring the same, then time them."""
    recorded = [ToolCall(NAME, {"town": f"town {n}", "days": n % 7}) for n in range(RECORDED)]
    hits = random.Random(0).sample(recorded, HITS)
    some, expected = hits[:ASKED], [observation(call) for call in hits]
    memory = {json.dumps([c.name, c.arguments], sort_keys=True): observation(c) for c in recorded}
    with tempfile.TemporaryDirectory() as folder, served() as url:
        file = Path(folder) / "responses.sqlite"
        record(file, recorded)
        with (
            asking(hits, cache=str(file)) as offline,
            asking(hits, cache=str(file), url=NOBODY) as in_front,
            asking(some, url=url) as server,
        ):
            assert offline() == in_front() == from_dict(memory, hits) == expected
            assert server() == expected[:ASKED]
            compare("the file alone against a dict", offline, lambda: from_dict(memory, hits))
            compare("the file in front of a server against the server", in_front, server)
    print(f"responses: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
