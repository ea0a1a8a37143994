"""What stages measure and count: records, lines of progress, and spans and counters of OpenTelemetry.

OpenTelemetry is on where the standard variables name a collector, such as OTEL_EXPORTER_OTLP_ENDPOINT, and off
otherwise: then nothing is imported and nothing is sent. All stages of a run are one trace, in whatever pods they run,
since the id of the trace is a digest of the run's name. TRACEPARENT, where it is set, is the parent of the stages
instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from statistics import fmean
from typing import Any

from steptool.records import Cost, Metric

LOG_VARIABLE = "STEPTOOL_LOG"
"""Environment variable that says how progress is printed: json, or lines for people."""
_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
"""Environment variables that name a collector of OpenTelemetry."""
_SCOPE = "steptool"
_PATIENCE = 5.0
"""Seconds that the stages of a process wait at their ends for the collector, all together."""
Attributes = Mapping[str, str | int | float | bool]
LOST_GROUP = "which leaves no task of the group"
"""Words in the name of a count of ingest where a whole group of tasks was dropped."""


def update_metrics(log: Iterable[Mapping[str, float]], stage: str, round_index: int) -> list[Metric]:
    """The figures of each optimizer step as metrics; `update` counts the steps from 0."""
    return [
        Metric(stage, round_index, update, name, float(value))
        for update, figures in enumerate(log)
        for name, value in figures.items()
    ]


def count_metrics(stage: str, counts: Mapping[str, Any], round_index: int = -1) -> list[Metric]:
    """Counts of a whole stage, nested or not, as metrics: {"queries": {"kept": 3}} becomes queries/kept."""
    return [Metric(stage, round_index, -1, name, float(value)) for name, value in _flatten(counts)]


def select_counts(metrics: Iterable[Metric], stage: str) -> dict[str, int]:
    """The counts that `count_metrics` made of a stage."""
    return {m.name: int(m.value) for m in metrics if m.stage == stage and m.update == -1}


def name_lost_groups(metrics: Iterable[Metric]) -> Iterator[str]:
    """A sentence for each group of tasks of which ingest has kept none."""
    for name, number in select_counts(metrics, "ingest").items():
        if LOST_GROUP in name:
            yield f"{number} queries were dropped: {name.partition(': ')[2]}."


def total_counts(costs: Iterable[Cost]) -> dict[str, float]:
    """What several stages or shards counted, summed by name."""
    totals: dict[str, float] = {}
    for cost in costs:
        for name, count in cost.counts.items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


def _flatten(counts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


class Stopwatch:
    """Measures one stage from the moment it is made."""

    def __init__(self, stage: str, round_index: int = -1) -> None:
        self.stage = stage
        self.round_index = round_index
        self._start = time.perf_counter()

    def measure_cost(self, tokens: int = 0, counts: Mapping[str, float] | None = None) -> Cost:
        """What the stage took until now."""
        seconds = time.perf_counter() - self._start
        return Cost(self.stage, self.round_index, seconds, tokens, measure_peak_memory_mb(), counts or {})


def is_first_process() -> bool:
    """Whether this process prints and writes for all of those that torch's launcher started."""
    return os.environ.get("RANK", "0") == "0"


def measure_peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def format_line(stage: str, text: str, *, seconds: float | None = None, round_index: int = -1, rounds: int = 0) -> str:
    """A line with the stage, the round, the number of rounds, the text, the time taken and the time left.

    `round_index` counts from 0. `seconds` is the time that the stage took, or that the whole round took where the stage
    ends one. The time left assumes that each round to come takes as long as this one.
    """
    place = f"round {round_index + 1:>{len(str(rounds))}} of {rounds}" if round_index >= 0 else ""
    clock = "" if seconds is None else format_duration(seconds)
    if seconds is not None and round_index >= 0:
        remaining = seconds * (rounds - round_index - 1)
        clock = f"{format_duration(seconds)} this round, {format_duration(remaining)} left in rounds"
    return "  ".join(part for part in (f"{stage:<10}", place, text, clock) if part)


def say(stage: str, text: str, *, seconds: float | None = None, round_index: int = -1, rounds: int = 0) -> None:
    """Print the line, or a JSON object where STEPTOOL_LOG is json. Only the first of several processes prints."""
    if not is_first_process():
        return
    if os.environ.get(LOG_VARIABLE) == "json":
        place = {"round": round_index, "rounds": rounds} if round_index >= 0 else {}
        print_record("info", stage, text, place | ({} if seconds is None else {"seconds": seconds}))
    else:
        print(
            escape_controls(format_line(stage, text, seconds=seconds, round_index=round_index, rounds=rounds)),
            flush=True,
        )


def say_results(stage: str, table: str, places: Mapping[str, str]) -> None:
    """Print the table of results and where the rest of them lies, or one JSON object where STEPTOOL_LOG is json."""
    if os.environ.get(LOG_VARIABLE) == "json":
        print_record("info", stage, "results", {"table": table, **places})
    else:
        lines = (f"{name}: {place}" for name, place in places.items())
        print(escape_controls("\n".join(["", table.rstrip("\n"), "", *lines])), flush=True)


def say_error(stage: str, text: str) -> None:
    """Print why a stage failed, in the same form as its progress."""
    if os.environ.get(LOG_VARIABLE) == "json":
        print_record("error", stage, text, {})
    else:
        print(f"{stage}: {text}", flush=True)


def print_record(level: str, stage: str, text: str, fields: Mapping[str, Any]) -> None:
    """Print one line of a structured log: time (UTC), level, stage, message and what else is known."""
    record = {"time": datetime.now(UTC).isoformat(), "level": level, "stage": stage, "message": text, **fields}
    print(json.dumps(record), flush=True)


def escape_controls(text: str) -> str:
    """The text with control characters written as escapes, so that no data, tool or server controls the terminal."""
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character)[0] == "C"


class Ticker:
    """A callback that says, from time to time, how far a long stage is."""

    def __init__(self, stage: str, total: int, unit: str, every_seconds: float = 15.0) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._every = every_seconds
        self._start = self._last = time.perf_counter()

    def __call__(self, done: int, *_: float) -> None:
        """Say that `done` of the total are done, with the time that the rest will take at the pace until now."""
        now = time.perf_counter()
        if done < 1 or now - self._last < self._every:
            return
        self._last = now
        remaining = (now - self._start) / done * (self._total - done)
        say(self._stage, f"{done} of {self._total} {self._unit}, {format_duration(remaining)} left here")


def average_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not missing; None if all are."""
    known_values = [value for value in values if value is not None]
    return fmean(known_values) if known_values else None


def format_rate(values: Iterable[float | None]) -> str:
    """The mean of the known verdicts in words, or what a task needs for a verdict."""
    rate = average_known(values)
    if rate is None:
        return "pass rate unknown: the environment gives no verdict, and no task has a reference.answer"
    return f"pass rate {rate:.3f}"


def format_duration(seconds: float) -> str:
    """A time for people: seconds below two minutes, else minutes and seconds."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


@cache
def is_on() -> bool:
    """Whether the environment names a collector and OTEL_SDK_DISABLED does not forbid it."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not is_disabled and any(os.environ.get(name) for name in _ENDPOINTS)


@contextmanager
def trace_stage(stage: str, run: str, attributes: Attributes) -> Iterator[dict[str, Any]]:
    """A span of a stage. What is put into the dict becomes attributes at the end.

    An exception marks the span as failed and goes on. At the end everything is sent, also after an exception.
    """
    later: dict[str, Any] = {}
    telemetry = _open()
    if telemetry is None:
        yield later
        return
    from opentelemetry import trace

    span_attributes = {"steptool.stage": stage, "steptool.run": run, **attributes}
    with ExitStack() as stack:
        stack.callback(telemetry.flush)
        span = stack.enter_context(
            telemetry.tracer.start_as_current_span(stage, telemetry.find_parent(run), attributes=span_attributes)
        )
        outer, telemetry.stage = telemetry.stage, trace.set_span_in_context(span)
        try:
            yield later
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.set_attributes(later)
            telemetry.stage = outer


@contextmanager
def trace_call(tool: str, environment: str) -> Iterator[dict[str, Any]]:
    """A span of one call of a tool, below the span of its stage, and the counters of calls and failures.

    The dict takes `status`, what became of the call, and `error`, the kind of failure, where it failed. An exception is
    a failure too, and goes on.
    """
    outcome: dict[str, Any] = {}
    telemetry = _open()
    if telemetry is None:
        yield outcome
        return
    call = {"gen_ai.tool.name": tool, "steptool.environment": environment}
    attributes = {"gen_ai.operation.name": "execute_tool", **call}
    with telemetry.tracer.start_as_current_span(f"execute_tool {tool}", telemetry.stage, attributes=attributes) as span:
        try:
            yield outcome
        except BaseException as error:
            outcome["error"] = type(error).__name__
            raise
        finally:
            telemetry.record_call(span, call, outcome)


def count(name: str, value: float, attributes: Attributes) -> None:
    """Add a value to the counter of this name, unless telemetry is off."""
    if telemetry := _open():
        telemetry.add(name, value, attributes)


@dataclass
class _Telemetry:
    """The providers of this process."""

    tracer: Any
    meter: Any
    providers: tuple[Any, ...]
    stage: Any = None
    """Context of the span of the stage that runs, the parent of calls in whatever threads they are made."""
    counters: dict[str, Any] = field(default_factory=dict)
    patience: float = _PATIENCE
    """Seconds that are left to wait for the collector."""

    def find_parent(self, run: str) -> Any:
        """The context that a stage begins in: an outer stage's, that of TRACEPARENT, or the trace of the run."""
        if self.stage is not None:
            return self.stage
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if parent := os.environ.get("TRACEPARENT"):
            return TraceContextTextMapPropagator().extract({"traceparent": parent})
        digest = hashlib.sha256(run.encode()).digest()
        root = trace.SpanContext(
            trace_id=int.from_bytes(digest[:16]),
            span_id=int.from_bytes(digest[16:24]),
            is_remote=True,
            trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        )
        return trace.set_span_in_context(trace.NonRecordingSpan(root))

    def add(self, name: str, value: float, attributes: Attributes) -> None:
        """Add a value to the counter of this name, which the first call makes."""
        if name not in self.counters:
            self.counters[name] = self.meter.create_counter(name)
        self.counters[name].add(value, dict(attributes))

    def record_call(self, span: Any, labels: Attributes, outcome: Mapping[str, Any]) -> None:
        """Add what became of a call to its span and to the counters."""
        status, error = str(outcome.get("status", "")), str(outcome.get("error", ""))
        span.set_attribute("steptool.status", status)
        self.add("steptool.tool.calls", 1, {**labels, "steptool.status": status})
        if error:
            from opentelemetry.trace import StatusCode

            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR, error)
            self.add("steptool.tool.failures", 1, {**labels, "error.type": error})

    def flush(self) -> None:
        """Send what was not sent yet, and wait for it. Without patience the providers send it in the background.

        A thread does the waiting, because the provider of spans ignores the limit of time that it takes.
        """
        if self.patience <= 0:
            return
        start = time.monotonic()
        sender = threading.Thread(target=self._send, daemon=True)
        sender.start()
        sender.join(self.patience)
        self.patience -= time.monotonic() - start

    def _send(self) -> None:
        for provider in self.providers:
            provider.force_flush()


def _open() -> _Telemetry | None:
    return _make() if is_on() else None


@cache
def _make() -> _Telemetry | None:
    """The telemetry of this process; None, after a printed line that says why, where it cannot be made."""
    try:
        for name in _ENDPOINTS:
            if (url := os.environ.get(name, "")) and not url.startswith(("http://", "https://")):
                raise ValueError(f"{name}: expected an address that begins with http:// or https://")
        return _start_providers()
    except ImportError as error:
        say("telemetry", f"off: {error}; pip install 'steptool[telemetry]' for the collector that is configured")
    except ValueError as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        say("telemetry", f"off: {error}; see the variables {names}")
    return None


def _start_providers() -> _Telemetry:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", _SCOPE)
    resource = Resource.create({"service.name": name, "service.version": version("steptool")})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    metrics = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
    return _Telemetry(traces.get_tracer(_SCOPE), metrics.get_meter(_SCOPE), (traces, metrics))
