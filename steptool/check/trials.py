"""Before a run: whether the user's own modules can be imported, the tools answer and the endpoints reply.

Each trial meets what a run would meet, and has a limit of time. A module is imported in a process of its own first, so
that one which hangs or ends its process is named.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from steptool.chat.messages import reads_only
from steptool.check.plan import find_endpoints
from steptool.config import Config, ConfigError, ToolsConfig
from steptool.environments.base import Environment, import_object
from steptool.environments.limits import LimitedEnvironment
from steptool.records import FINISH, Query, StepStatus, ToolCall, ToolSchema, Trajectory

_QUESTION = {"role": "user", "content": "Answer with the word yes."}
"""The request to a judge."""
_IMPORT_SECONDS = 60.0
"""Seconds that the imports of a configuration have, unless `tools.timeout` is more."""
_RETRIES = 1
"""Further attempts of the request to an endpoint: few, so that the error names a cause and not only the limit."""
_SHOWN = 120
"""Characters of a failed call's answer that are shown."""


def try_imports(config: Config, seconds: float = _IMPORT_SECONDS) -> None:
    """Import the user's own modules that the configuration names, in a process of their own.

    They have `seconds`, or `tools.timeout` if that is more. What an import raises is not reported here: the import in
    this process raises it again. Raises ConfigError for a module that does not get to its end in time, ends its
    process, keeps its process from ending, changes the current folder, or removes folders from sys.path.
    """
    objects = list(_list_own_objects(config))
    if not objects:
        return
    limit = max(seconds, config.tools.timeout)
    deadline = time.monotonic() + limit
    process, pipe = _start_imports(objects)
    try:
        for name, place in objects:
            if problem := _read_outcome(process, pipe, deadline, limit):
                raise ConfigError(f"{name}: importing '{place}' {problem}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        if process.returncode is None:
            places = ", ".join(f"'{place}' ({name})" for name, place in objects)
            raise ConfigError(
                f"importing {places} starts something that keeps the process from ending for more than {limit:g} s: "
                "start threads with daemon=True"
            )
    finally:
        pipe.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _list_own_objects(config: Config) -> Iterator[tuple[str, str]]:
    """The fields that name classes and functions of the user's own, with what they name."""
    fields = {
        "tools.functions": config.tools.functions,
        "data.environment": config.data.environment,
        "data.source": config.data.source,
        "tools.settings.taskset": config.tools.settings.get("taskset"),
    }
    yield from ((name, text) for name, text in fields.items() if isinstance(text, str) and ":" in text)


def _start_imports(objects: Sequence[tuple[str, str]]) -> tuple[subprocess.Popen[bytes], Connection]:
    """A process that imports one module after the other, and where it says how each ended."""
    receiver, sender = Pipe(duplex=False)
    with sender:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(sender.fileno()), json.dumps(objects)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[sender.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
    return process, receiver


def _read_outcome(process: subprocess.Popen[bytes], pipe: Connection, deadline: float, limit: float) -> str:
    """What is wrong with the next module; empty if nothing is. `limit` are the seconds that all have."""
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        return f"did not end within {limit:g} s; if it only needs longer, raise tools.timeout"
    try:
        return pipe.recv_bytes().decode()
    except (EOFError, OSError):
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        return f"ends the process, with exit code {process.returncode}"


def _import_all(pipe: Connection, objects: Sequence[tuple[str, str]]) -> None:
    """Import the modules, and say of each what is wrong with it, if anything."""
    for name, place in objects:
        folder, paths = Path.cwd(), list(sys.path)
        with suppress(ConfigError):  # the import in the process of the command raises it again
            import_object(place, name, "")
        pipe.send_bytes(_describe_changes(folder, paths).encode())


def _describe_changes(folder: Path, paths: Sequence[str]) -> str:
    """How a module has changed what all modules share: the current folder, and where modules are found."""
    if Path.cwd() != folder:
        return f"changes the current folder to {Path.cwd()}: begin its paths with Path(__file__).parent instead"
    if lost_paths := [path for path in paths if path not in sys.path]:
        return f"removes {', '.join(lost_paths)} from sys.path, where the run finds modules: only add folders to it"
    return ""


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
    limited_environment = LimitedEnvironment(environment, limits)
    try:
        for name, (schema, query) in _list_tools(queries).items():
            sample = samples.get(name) or _call_without_arguments(schema, query)
            if called is CalledTools.NONE:
                trial.left_out[name] = "no calls were asked for"
            elif called is CalledTools.READ_ONLY and reads_only(schema) is not True:
                trial.left_out[name] = "they do not say that they only read"
            elif sample is None:
                trial.left_out[name] = "no task or demonstration shows their arguments"
            else:
                _call(limited_environment, *sample, trial)
    finally:
        limited_environment.close()
    if trial.failures and not trial.seconds:
        name, answer = next(iter(trial.failures.items()))
        raise ConfigError(f"no tool answers: {name} failed with {answer}; see the section tools of the configuration")
    return trial


def _call(environment: LimitedEnvironment, query: Query, call: ToolCall, trial: ToolTrial) -> None:
    """Make a call in a session of its own, and note the outcome. The time does not include the end of the session."""
    with closing(environment.reset(query)) as session:
        start = time.perf_counter()
        result = session.call(call)
        seconds = time.perf_counter() - start
    if result.status is StepStatus.OK:
        trial.seconds[call.name] = seconds
    else:
        trial.failures[call.name] = f"{result.status}: {result.observation[:_SHOWN]}"


def _list_tools(queries: Sequence[Query]) -> dict[str, tuple[ToolSchema, Query]]:
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
    required_names = function.get("parameters", {}).get("required")
    return None if required_names else (query, ToolCall(function["name"], {}))


def try_endpoints(config: Config, query: Query, *, for_training: bool) -> Iterator[str]:
    """Send a request to each endpoint that the run calls, and yield a line for each that replied.

    A policy gets the query as its first turn, a judge a short question. Each has `timeout` seconds of its section, all
    attempts together. Raises ConfigError for one that does not reply, unless a file has replies of it already.
    """
    from steptool.chat.endpoint import Endpoint, EndpointError, RequestTooLong

    for called_endpoint in find_endpoints(config, for_training=for_training):
        messages, tools = ([_QUESTION], ()) if called_endpoint.is_judge else (query.first_messages, query.tools)
        start = time.monotonic()
        try:
            with closing(Endpoint(called_endpoint.endpoint.model_copy(update={"retries": _RETRIES}))) as endpoint:
                endpoint.chat(messages, tools, deadline=start + called_endpoint.endpoint.timeout)
            outcome = f"replied after {time.monotonic() - start:.1f} s"
        except RequestTooLong:
            outcome = f"reached; query '{query.query_id}' is longer than its context"
        except (EndpointError, ValueError) as error:
            if not (called_endpoint.cache and Path(called_endpoint.cache).is_file()):
                raise ConfigError(f"{called_endpoint.field}: {error}") from error
            outcome = f"no reply, so that only those in {called_endpoint.cache} can be had ({error})"
        yield f"endpoint    {called_endpoint.name}: {outcome}"


if __name__ == "__main__":
    _import_all(Connection(int(sys.argv[1]), readable=False), json.loads(sys.argv[2]))
