"""Traces, counters and structured logs of a real stage, as a collector on this machine receives them."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'steptool[telemetry]'")

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).parents[2]
PLAY = """
import sys
from contextlib import closing
from steptool.artifacts.metrics import say
from steptool.artifacts.metrics import count, trace_stage
from steptool.config import ToolsConfig
from steptool.environments.functions.environment import FunctionsEnvironment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import Query, Reference, ToolCall

state = {"stock": {"kettle": 13}, "prices": {"kettle": 6}}
environment = FunctionsEnvironment("examples/functions/tools.py:Shop")
query = Query("q", "train", "functions", "?", (), Reference(environment={"state": state}))
calls = [("count", "kettle"), ("count", "moon"), ("price", 7), ("zap", "")]
with trace_stage("rollout", "night-7", {"steptool.round": 2}) as later:
    with closing(LimitedEnvironment(environment, ToolsConfig()).reset(query)) as session:
        for tool, item in calls:
            session.call(ToolCall(tool, {"item": item}))
    count("steptool.endpoint.tokens", 5, {"gen_ai.token.type": "input"})
    later["steptool.rows"] = 4
    say("rollout", "played", seconds=1.5, round_index=2, rounds=3)
print("sdk" if "opentelemetry.sdk.trace" in sys.modules else "no sdk")
try:
    with trace_stage("ppo", "night-7", {}):
        raise ValueError("broken")
except ValueError:
    pass
"""
STAGES = """
import time
from steptool.artifacts.metrics import count, trace_stage

start = time.monotonic()
for stage in ("rollout", "annotate", "audit", "ppo"):
    with trace_stage(stage, "night-7", {}):
        count("steptool.endpoint.tokens", 1, {})
print(time.monotonic() - start)
"""


RAISES = """
from steptool.artifacts.metrics import trace_call, trace_stage

with trace_stage("rollout", "night-7", {}):
    try:
        with trace_call("count", "functions"):
            raise KeyError("kettle")
    except KeyError:
        print("went on")
"""


DIES = """
import os
from steptool.artifacts.metrics import trace_stage

try:
    with trace_stage("ppo", "night-7", {}):
        raise ValueError("broken")
finally:
    os._exit(0)
"""


ASKS = """
import sys
from steptool.artifacts.metrics import trace_stage
from steptool.chat.endpoint import Endpoint
from steptool.config import EndpointConfig

endpoint = Endpoint(EndpointConfig(base_url=sys.argv[1], model="judge-1", price_in=2.0, price_out=10.0))
with trace_stage("annotate", "night-7", {}):
    for text in ("one", "two"):
        endpoint.chat([{"role": "user", "content": text}])
endpoint.close()
"""


class Collector:
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.resources: list[dict[str, Any]] = []
        self.sums: dict[tuple[str, tuple[tuple[str, Any], ...]], float] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                collector.receive(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def receive(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(read_attributes(resource.resource.attributes))
                for scope in resource.scope_spans:
                    self.spans |= {span.name: span for span in scope.spans}
        elif path == "/v1/metrics":
            for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in (metric for scope in metrics.scope_metrics for metric in scope.metrics):
                    for point in metric.sum.data_points:
                        labels = tuple(sorted(read_attributes(point.attributes).items()))
                        self.sums[metric.name, labels] = point.as_int or point.as_double


def read_attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    yield collector
    collector.server.shutdown()


def play(*arguments: str, program: str = PLAY, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.run(
        command, env={**environment, **variables}, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return process.stdout.splitlines()


def test_a_collector_receives_stages_calls_and_counters(collector: Collector) -> None:
    assert play(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)[-1] == "sdk"
    stage, failed = collector.spans["rollout"], collector.spans["ppo"]
    assert read_attributes(stage.attributes) == {
        "steptool.stage": "rollout", "steptool.run": "night-7", "steptool.round": 2, "steptool.rows": 4,
    }  # fmt: skip
    assert stage.trace_id == failed.trace_id  # of one run, whatever process or pod a stage runs in
    assert read_attributes(failed.attributes)["error.type"] == "ValueError" and failed.status.code == 2
    assert collector.resources[0]["service.name"] == "steptool"
    calls = {name: span for name, span in collector.spans.items() if name.startswith("execute_tool")}
    assert set(calls) == {"execute_tool count", "execute_tool price", "execute_tool zap"}
    assert {span.parent_span_id for span in calls.values()} == {stage.span_id}
    moon = read_attributes(calls["execute_tool count"].attributes)  # the later of two calls
    assert moon == {
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "count", "steptool.environment": "functions",
        "steptool.status": "tool_error", "error.type": "tool_error",
    }  # fmt: skip
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in calls.values())
    failures = {
        (dict(labels)["gen_ai.tool.name"], dict(labels)["error.type"]): value
        for (name, labels), value in collector.sums.items()
        if name == "steptool.tool.failures"
    }
    assert failures == {
        ("count", "tool_error"): 1, ("price", "invalid_arguments"): 1, ("zap", "unknown_tool"): 1,
    }  # fmt: skip
    assert sum(value for (name, _), value in collector.sums.items() if name == "steptool.tool.calls") == 4
    assert collector.sums["steptool.endpoint.tokens", (("gen_ai.token.type", "input"),)] == 5


def test_a_stage_that_fails_is_sent_before_its_process_may_end(collector: Collector) -> None:
    play(program=DIES, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert read_attributes(collector.spans["ppo"].attributes)["error.type"] == "ValueError"


def test_a_call_that_raises_is_counted_as_a_failure(collector: Collector) -> None:
    assert play(program=RAISES, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)[-1] == "went on"
    labels = (("gen_ai.tool.name", "count"), ("steptool.environment", "functions"))
    assert collector.sums["steptool.tool.failures", (("error.type", "KeyError"), *labels)] == 1
    assert collector.sums["steptool.tool.calls", (*labels, ("steptool.status", ""))] == 1
    span = collector.spans["execute_tool count"]
    assert read_attributes(span.attributes)["error.type"] == "KeyError" and span.status.code == 2


def test_what_a_judge_costs_is_counted(collector: Collector, chat: Any) -> None:
    server = chat.serve(lambda *_: chat.Answer())  # of 100 tokens read and 10 written
    play(server.url, program=ASKS, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    model = (("gen_ai.request.model", "judge-1"),)
    assert collector.sums["steptool.endpoint.requests", model] == 2
    assert collector.sums["steptool.endpoint.cost", model] == pytest.approx(2 * (100 * 2 + 10 * 10) / 1e6)
    read = ("gen_ai.request.model", "judge-1"), ("gen_ai.token.type", "input")
    assert collector.sums["steptool.endpoint.tokens", read] == 200


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_BSP_SCHEDULE_DELAY": "-5"}, "see the variables OTEL_BSP_SCHEDULE_DELAY, OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"}, "off: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "off: OTEL_EXPORTER_OTLP_ENDPOINT: expected an address"),
    ],
)
def test_a_wrong_variable_is_named_and_the_stage_goes_on(variables: dict[str, str], words: str) -> None:
    lines = play(**{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables})
    assert sum(line.startswith("telemetry") and words in line for line in lines) == 1
    assert lines[-1] in ("sdk", "no sdk")


def test_a_parent_from_outside_is_taken(collector: Collector) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    play(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, TRACEPARENT=f"00-{trace}-{parent}-01")
    stage = collector.spans["rollout"]
    assert (stage.trace_id.hex(), stage.parent_span_id.hex()) == (trace, parent)


def test_stages_wait_together_for_a_collector_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Traces and metrics would take two seconds each at the end of each of four stages.
        seconds = float(play(program=STAGES, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_TIMEOUT="2")[-1])
    assert 1 < seconds < 8


def test_without_a_collector_nothing_is_imported() -> None:
    assert play()[-1] == "no sdk"


def test_lines_of_progress_are_json_where_that_is_asked_for() -> None:
    (line,) = [json.loads(line) for line in play(STEPTOOL_LOG="json") if line.startswith("{")]
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "stage": "rollout", "message": "played", "round": 2, "rounds": 3, "seconds": 1.5,
    }  # fmt: skip
