"""The judge: trajectories judged a second with 64 requests in flight against one at a time.

A server on this machine answers each request after a fixed delay, as a model does that others use as well. Prints
`name: OURS OTHER RATIO`, and the same for a second pass, which the file of replies answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from steptool.config import EndpointConfig, JudgeConfig
from steptool.records import FINISH, Query, Step, StepStatus, StopReason, ToolCall, Trajectory
from steptool.rewards.annotators import annotate, get_annotator_counts, open_annotator

DELAY, IN_FLIGHT, MANY, FEW = 0.2, 64, 768, 24
QUERY = Query("q", "train", "desk", "cancel the last order of mira chen", ())
SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STEPS = [{"step": n, "success": 1, "contribution": c} for n, c in enumerate([5, 3, 0, 5], start=1)]
SCORES = {"reason": "", "steps": STEPS, "status": "solved"}
CALL = {"id": "c", "type": "function", "function": {"name": "report_scores", "arguments": json.dumps(SCORES)}}
MESSAGE = {"role": "assistant", "content": None, "tool_calls": [CALL]}
USAGE = {"prompt_tokens": 900, "completion_tokens": 60}
BODY = json.dumps({"choices": [{"message": MESSAGE}], "usage": USAGE}).encode()

class Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(float(sys.argv[1]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 256

server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def serve_judge() -> Iterator[str]:
    """Address of the server."""
    command = [sys.executable, "-c", SERVER, str(DELAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.kill()


def episode(number: int) -> Trajectory:
    """Four calls and an answer, unlike those of any other number."""
    calls = [Step(ToolCall(f"tool_{n}", {"id": number}), StepStatus.OK, f"{number} " * 200) for n in range(4)]
    finish = Step(ToolCall(FINISH, {"return_type": "give_answer"}), StepStatus.FINISH, "")
    none = np.zeros(0)
    return Trajectory(
        trajectory_id=f"t{number}",
        query_id="q",
        environment="desk",
        tier="",
        policy="p",
        round=0,
        sample=0,
        temperature=1.0,
        messages=[],
        input_ids=none.astype(np.int32),
        spans=[],
        logprobs=none.astype(np.float32),
        steps=[*calls, finish],
        stop_reason=StopReason.FINISHED,
        final_answer=str(number),
        solved=None,
        seconds=0.0,
    )


def rate(url: str, episodes: Sequence[Trajectory], in_flight: int, cache: str = "", sent: int | None = None) -> float:
    """Trajectories a second, with one vote each; checks how many requests that took."""
    endpoint = EndpointConfig(base_url=url, model="m", concurrency=in_flight)
    with open_annotator("judge", JudgeConfig(endpoint=endpoint, votes=1, cache=cache)) as judge:
        began = time.perf_counter()
        rows = annotate([QUERY], episodes, judge)
        seconds = time.perf_counter() - began
        assert get_annotator_counts(judge)["sent"] == (len(episodes) if sent is None else sent)
    assert [row.contribution for row in rows] == [1.0, 0.6, 0.0, 1.0, None] * len(episodes)
    return len(episodes) / seconds


def main() -> None:
    """Time them, the one at a time on a few."""
    many, few = [episode(n) for n in range(MANY)], [episode(n) for n in range(MANY, MANY + FEW)]
    with serve_judge() as url, tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "replies.sqlite")
        together = rate(url, many, IN_FLIGHT, cache)
        alone = rate(url, few, 1)
        again = rate(url, many, IN_FLIGHT, cache, sent=0)
    what = f"server that takes {DELAY:g} s"
    print(
        f"judge requests/s, {what}, {IN_FLIGHT} in flight against 1: {together:.0f} {alone:.1f} {together / alone:.1f}"
    )
    print(
        f"judge trajectories/s, from the file of replies against asking: {again:.0f} {together:.0f} "
        f"{again / together:.1f}"
    )
    print(f"judge: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
