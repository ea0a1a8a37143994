"""One real call of each tool before a run: whether the tools answer, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from steptool.chat.messages import reads_only
from steptool.config import ConfigError, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import FINISH, Query, StepStatus, ToolCall, ToolSchema, Trajectory

_SHOWN = 120
"""Characters of a failed call's answer that are shown."""


class CalledTools(StrEnum):
    """Which tools get a call."""

    READ_ONLY = "read-only"
    """Tools whose schema says that they only read, so that the calls change nothing."""
    ALL = "all"
    NONE = "none"


@dataclass
class ToolTrial:
    """The outcome of the calls, by the name of the tool."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each call that was answered."""
    failures: dict[str, str] = field(default_factory=dict)
    """Status and answer of each call that failed."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a tool was not called."""

    @property
    def mean_seconds(self) -> float:
        """Mean time of a call that was answered; 0 without one."""
        return sum(self.seconds.values()) / len(self.seconds) if self.seconds else 0.0

    def describe(self) -> Iterator[str]:
        """A line with the count, one for each tool that failed, and one for each reason not to call a tool."""
        tools = len(self.seconds) + len(self.failures) + len(self.left_out)
        time_taken = f", {self.mean_seconds * 1000:.0f} ms a call on average" if self.seconds else ""
        yield f"{len(self.seconds)} of {tools} tools answered a call{time_taken}"
        for name, answer in self.failures.items():
            yield f"{name} failed: {answer}"
        for reason in dict.fromkeys(self.left_out.values()):
            yield f"not called, since {reason}: {', '.join(n for n, r in self.left_out.items() if r == reason)}"


def try_tools(
    environment: Environment,
    queries: Sequence[Query],
    demonstrations: Iterable[Trajectory],
    limits: ToolsConfig,
    called: CalledTools = CalledTools.READ_ONLY,
) -> ToolTrial:
    """Call each tool of the queries once, in a session of its own.

    The arguments come from a reference solution or a demonstration. If these call a tool several times, the earliest
    call counts, since later ones may need what earlier ones did. A tool without required parameters is called without
    arguments if no solution shows any. Raises ConfigError if tools were called and none answered.
    """
    trial, samples = ToolTrial(), _find_samples(queries, demonstrations)
    limited = LimitedEnvironment(environment, limits)
    try:
        for name, (schema, query) in _tools_of(queries).items():
            sample = samples.get(name) or _call_without_arguments(schema, query)
            if called is CalledTools.NONE:
                trial.left_out[name] = "no calls were asked for"
            elif called is CalledTools.READ_ONLY and reads_only(schema) is not True:
                trial.left_out[name] = "they do not say that they only read"
            elif sample is None:
                trial.left_out[name] = "no task or demonstration shows their arguments"
            else:
                _call(limited, *sample, trial)
    finally:
        limited.close()
    if trial.failures and not trial.seconds:
        name, answer = next(iter(trial.failures.items()))
        raise ConfigError(f"no tool answers: {name} failed with {answer}; see the section tools of the configuration")
    return trial


def _call(environment: LimitedEnvironment, query: Query, call: ToolCall, trial: ToolTrial) -> None:
    session = environment.reset(query)
    start = time.perf_counter()
    try:
        result = session.call(call)
    finally:
        session.close()
    if result.status is StepStatus.OK:
        trial.seconds[call.name] = time.perf_counter() - start
    else:
        trial.failures[call.name] = f"{result.status}: {result.observation[:_SHOWN]}"


def _tools_of(queries: Sequence[Query]) -> dict[str, tuple[ToolSchema, Query]]:
    """The tools by name, Finish left out, each with the first query that offers it."""
    tools: dict[str, tuple[ToolSchema, Query]] = {}
    for query in queries:
        for tool in query.tools:
            tools.setdefault(tool["function"]["name"], (tool, query))
    tools.pop(FINISH, None)
    return tools


def _find_samples(queries: Sequence[Query], demonstrations: Iterable[Trajectory]) -> dict[str, tuple[Query, ToolCall]]:
    """For each tool the call that comes earliest in a solution, with its query."""
    by_id = {query.query_id: query for query in queries}
    solutions = [(query, query.reference.calls or next(iter(query.reference.turns or ()), ())) for query in queries]
    for demonstration in demonstrations:
        if demonstration.query_id in by_id:
            calls = tuple(s.call for s in demonstration.steps if s.call and s.status is StepStatus.OK)
            solutions.append((by_id[demonstration.query_id], calls))
    samples: dict[str, tuple[int, Query, ToolCall]] = {}
    for query, calls in solutions:
        for position, call in enumerate(calls):
            if call.name not in samples or position < samples[call.name][0]:
                samples[call.name] = position, query, call
    return {name: (query, call) for name, (_, query, call) in samples.items()}


def _call_without_arguments(schema: ToolSchema, query: Query) -> tuple[Query, ToolCall] | None:
    function = schema["function"]
    needed = function.get("parameters", {}).get("required")
    return None if needed else (query, ToolCall(function["name"], {}))
