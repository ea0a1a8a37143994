"""OpenTelemetry: spans of stages and tool calls, counters of calls, failures and what endpoints cost.

It is on where the standard variables name a collector, such as OTEL_EXPORTER_OTLP_ENDPOINT, and off otherwise: then
nothing is imported and nothing is sent. All stages of a run are one trace, in whatever pods they run, since the id of
the trace is a digest of the run's name. TRACEPARENT, where it is set, is the parent of the stages instead.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

from steptool.artifacts.metrics import say

_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_SCOPE = "steptool"
_PATIENCE = 5.0
"""Seconds that the stages of a process wait at their ends for the collector, all together."""

Attributes = Mapping[str, str | int | float | bool]


@cache
def is_on() -> bool:
    """Whether the environment names a collector and OTEL_SDK_DISABLED does not forbid it."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not is_disabled and any(os.environ.get(name) for name in _ENDPOINTS)


@contextmanager
def trace_stage(stage: str, run: str, attributes: Attributes) -> Iterator[dict[str, Any]]:
    """A span of a stage. What is put into the dict becomes attributes at the end.

    An exception marks the span as failed and goes on. At the end everything is sent.
    """
    later: dict[str, Any] = {}
    telemetry = _open()
    if telemetry is None:
        yield later
        return
    from opentelemetry import trace

    known = {"steptool.stage": stage, "steptool.run": run, **attributes}
    with telemetry.tracer.start_as_current_span(stage, telemetry.parent_of(run), attributes=known) as span:
        outer, telemetry.stage = telemetry.stage, trace.set_span_in_context(span)
        try:
            yield later
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.set_attributes(later)
            telemetry.stage = outer
    telemetry.flush()


@contextmanager
def trace_call(tool: str, environment: str) -> Iterator[dict[str, Any]]:
    """A span of one call of a tool, below the span of its stage, and the counters of calls and failures.

    The dict takes `status`, what became of the call, and `error`, the kind of failure, where it failed.
    """
    outcome: dict[str, Any] = {}
    telemetry = _open()
    if telemetry is None:
        yield outcome
        return
    known = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool, "steptool.environment": environment}
    with telemetry.tracer.start_as_current_span(f"execute_tool {tool}", telemetry.stage, attributes=known) as span:
        yield outcome
        status, error = str(outcome.get("status", "")), str(outcome.get("error", ""))
        span.set_attribute("steptool.status", status)
        labels = {"steptool.environment": environment, "gen_ai.tool.name": tool}
        telemetry.add("steptool.tool.calls", 1, {**labels, "steptool.status": status})
        if error:
            from opentelemetry.trace import StatusCode

            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR, error)
            telemetry.add("steptool.tool.failures", 1, {**labels, "error.type": error})


def count(name: str, value: float, attributes: Attributes) -> None:
    """Add to a counter; nothing where telemetry is off."""
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

    def parent_of(self, run: str) -> Any:
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
        """Add to a counter."""
        if name not in self.counters:
            self.counters[name] = self.meter.create_counter(name)
        self.counters[name].add(value, dict(attributes))

    def flush(self) -> None:
        """Send what was not sent yet, and wait for it. Without patience the providers send it in the background.

        The wait is a thread's because the provider of spans takes a limit of time and ignores it.
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
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        say("telemetry", f"off: {error}; pip install 'steptool[telemetry]' for the collector that is configured")
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", _SCOPE)
    resource = Resource.create({"service.name": name, "service.version": version("steptool")})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    metrics = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
    return _Telemetry(traces.get_tracer(_SCOPE), metrics.get_meter(_SCOPE), (traces, metrics))
