"""Hostile schemas, Python tools and /virtual servers: how many modes there are, and how many crash or hang.

Each mode goes through the environment that a run would use, with a limit of two seconds for a call. A mode crashes if
it raises anything but the refusal of a schema or a missing verdict, and hangs if it takes more than three times it.
Prints the figures of each group and the peak memory; exits with 1 if a mode crashes or hangs. Takes half a minute.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.environments.base import ToolResult, VerdictError, import_object, open_environment
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.environments.schema import SchemaError, check_arguments, check_tools
from steptool.records import Query, Reference, ToolCall

LIMIT = 2.0
"""Seconds of a call."""
Run = Callable[[], object]
DRAFTS = ("", "http://json-schema.org/draft-07/schema#")
SCHEMAS: Mapping[str, Any] = {
    "a reference to itself": {"$ref": "#/properties/x"},
    "a reference to nothing": {"$ref": "#/$defs/nothing"},
    "a reference to an address": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a dynamic reference": {"$dynamicRef": "#nothing"},
    "two references to itself": {"anyOf": [{"$ref": "#/properties/x"}, {"$ref": "#/properties/x"}]},
    "a base of its own": {"$id": "http://127.0.0.1:1/a", "$ref": "#/properties/x"},
    "a slow pattern": {"pattern": "^(a+)+$"},
    "a slow pattern with a choice": {"pattern": "^(a|aa)+$"},
    "slow names": {"patternProperties": {"^(a|aa)+$": {}}},
    "slow names and no others": {"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False},
    "a huge pattern": {"pattern": "((a{999}){999}){999}"},
    "a broken pattern": {"pattern": "(a"},
    "a huge factor": {"multipleOf": 10**400},
    "a tiny factor": {"multipleOf": 1e-308},
    "different elements": {"uniqueItems": True},
    "nested deeply": json.loads('{"items":' * 400 + "{}" + "}" * 400),
    "a long list of values": {"enum": [str(number) for number in range(20_000)]},
    "no type": {"type": "anything"},
    "not a schema": 7,
}
VALUES: tuple[Any, ...] = (
    *("a" * 60 + "!", {"a" * 60 + "!": 1}, 1.5, 10**400, float("inf"), None, "\ud800"),
    *([{"name": str(number)} for number in range(3_000)], json.loads("[" * 400 + "]" * 400)),
)
TOOLS = """
import asyncio, itertools, os, signal, sys, time

class Unreadable(Exception):
    def __str__(self):
        raise SystemExit

def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value

RAISED = {name: lambda error=error: error() for name, error in dict(
    KeyError=KeyError, KeyboardInterrupt=KeyboardInterrupt, SystemExit=SystemExit, GeneratorExit=GeneratorExit,
    CancelledError=asyncio.CancelledError, TimeoutError=TimeoutError, StopIteration=StopIteration,
    RecursionError=RecursionError, MemoryError=MemoryError, BaseException=BaseException, Unreadable=Unreadable,
).items()} | {
    "group": lambda: ExceptionGroup("two", [KeyError("a"), Unreadable()]),
    "base group": lambda: BaseExceptionGroup("one", [KeyboardInterrupt()]),
}
RETURNED = {
    "a set": lambda: {1}, "not a number": lambda: float("nan"), "half a pair": lambda: chr(0xD800),
    "a deep list": lambda: nested(100_000), "a circle": lambda: (lambda a: a.append(a) or a)([]),
    "a long text": lambda: "x" * (32 << 20), "bytes": lambda: b"x", "an object": object, "nothing": lambda: None,
    "an endless iterator": itertools.count, "a class": lambda: Unreadable, "a huge number": lambda: 10 ** 5000,
}

class Tools:
    def __init__(self, made: str = "") -> None:
        self._act(made)

    def _act(self, mode):
        if mode in RAISED:
            raise RAISED[mode]()
        return RETURNED.get(mode, lambda: mode)()

    def now(self, mode: str) -> object:
        '''Act.

        Args:
            mode: how
        '''
        return self._act(mode)

    async def later(self, mode: str) -> object:
        '''Act later.

        Args:
            mode: how
        '''
        await asyncio.sleep(0)
        return self._act(mode)

    def end(self, mode: str) -> str:
        '''Take the process along.

        Args:
            mode: how
        '''
        if mode == "hold":
            __import__("re").match("(a+)+$", "a" * 60 + "!")
        return {"exit": lambda: os._exit(0), "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "sleep": lambda: time.sleep(600), "close": lambda: os.closerange(3, 999) or "closed"}[mode]()

    def solved(self, final_answer, reference):
        return self._act(final_answer)
"""
REPLIES = (
    *(b"", b"<html>", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000),
    *(b'{"error": 1e999, "response": 1}', b'{"error": null, "response": null}', b'{"error": "", "response": "x"' * 9),
    *(b'{"error": "", "response": "\\ud800"}', b'{"error": "", "response": "' + b"x" * (16 << 20) + b'"}'),
)
STATUSES = (200, 204, 302, 404, 422, 500, 599)


@dataclass
class Group:
    """What the modes of one group cost."""

    name: str
    clock: Callable[[], float] = time.monotonic
    """Seconds: checks of arguments are limited in CPU time, so that a loaded machine fails none."""
    modes: int = 0
    crashes: int = 0
    hangs: int = 0
    slowest: float = 0.0

    def run(self, mode: str, work: Run) -> None:
        """Run one mode and count what becomes of it."""
        start = time.monotonic()
        try:
            work()
        except (SchemaError, ConfigError, VerdictError):
            pass
        except BaseException as error:
            self.crashes += 1
            print(f"{self.name}, {mode}: {type(error).__name__}")
        seconds = time.monotonic() - start
        self.modes, self.slowest = self.modes + 1, max(self.slowest, seconds)
        if seconds > 3 * LIMIT:
            self.hangs += 1
            print(f"{self.name}, {mode}: {seconds:.1f} s")


def check_schema(schema: Any, draft: str, value: Any) -> None:
    """Read a schema as the tools of a task, and check a value against it in any case."""
    parameters = {"type": "object", "properties": {"x": schema}, **({"$schema": draft} if draft else {})}
    problem = check_arguments(parameters, {"x": value})
    assert problem is None or isinstance(problem, str)
    tool = {"type": "function", "function": {"name": "tool", "description": "", "parameters": parameters}}
    check_tools([tool], "benchmark")


def run_schemas() -> Group:
    """Every hostile schema in two drafts, with every hostile value."""
    group = Group("schemas", time.process_time)
    for (name, schema), draft, number in product(SCHEMAS.items(), DRAFTS, range(len(VALUES))):
        mode = f"{name}, {draft or 'no draft'}, value {number}"
        group.run(mode, partial(check_schema, schema, draft, VALUES[number]))
    return group


def run_tools(file: Path) -> Group:
    """Python functions that raise or return what they should not, in a thread and in a process."""
    file.write_text(TOOLS, encoding="utf-8")
    modes = [mode for name in ("RAISED", "RETURNED") for mode in import_object(f"{file}:{name}", "file", "modes")]
    group = Group("Python tools")
    for isolation in ("thread", "process"):
        with open_session(f"{file}:Tools", isolation) as session:
            for mode, name in product(modes, ("now", "later")):
                group.run(f"{name} {mode}, {isolation}", partial(call, session, name, mode))
            for mode in modes:
                group.run(f"solved {mode}, {isolation}", partial(session.solved, mode))
        with open_session(f"{file}:Tools", isolation, made="KeyboardInterrupt") as session:
            group.run(f"an object that cannot be made, {isolation}", partial(call, session, "now", "fine"))
    for mode in ("exit", "kill", "sleep", "hold", "close"):
        with open_session(f"{file}:Tools", "process") as session:
            group.run(f"end {mode}", partial(call, session, "end", mode))
            group.run(f"after {mode}", partial(call, session, "now", "fine"))
    return group


class Handler(BaseHTTPRequestHandler):
    """Answers with the reply of its server; the status 0 is silence."""

    reply: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.reply["status"] == 0:
            time.sleep(self.reply["seconds"])
            return
        self.send_response(self.reply["status"])
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(self.reply["body"])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def run_servers() -> Group:
    """A /virtual server with every reply under every status, and one that is silent."""
    group = Group("/virtual servers")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        tools = {"toolbench": {"url": f"http://127.0.0.1:{server.server_port}/virtual"}}
        with open_session_of(
            "toolbench", tools, Reference(environment={"toolbench": {"f": ["a", "b", "c"]}})
        ) as session:
            for status, body in product(STATUSES, REPLIES):
                Handler.reply.update(status=status, body=body)
                group.run(f"{status} {body[:20]!r}", partial(call, session, "f"))
            for seconds in (0.0, 3 * LIMIT):
                Handler.reply.update(status=0, seconds=seconds)
                group.run(f"silence for {seconds:g} s", partial(call, session, "f"))
        server.shutdown()
    return group


@contextmanager
def open_session(functions: str, isolation: str, made: str = "") -> Iterator[LimitedSession]:
    """A session of Python tools."""
    tools = {"functions": functions, "isolation": isolation}
    with open_session_of("functions", tools, Reference(environment={"state": {"made": made}})) as session:
        yield session


@contextmanager
def open_session_of(name: str, tools: dict[str, Any], reference: Reference) -> Iterator[LimitedSession]:
    """A session of an environment, within the limits of a run."""
    config = Config.model_validate({"tools": {"timeout": LIMIT, **tools}})
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    with closing(open_environment(name, config)) as environment:
        environment_with_limits = LimitedEnvironment(environment, config.tools)
        with closing(environment_with_limits.reset(Query("q", "train", name, "", (tool,), reference))) as session:
            yield session


def call(session: LimitedSession, name: str, mode: str = "") -> None:
    """Make a call. Raises AssertionError unless it has a result that can be written to a file."""
    result = session.call(ToolCall(name, {"mode": mode} if mode else {}))
    assert isinstance(result, ToolResult)
    result.observation.encode()


def main() -> None:
    """Run all groups."""
    with tempfile.TemporaryDirectory() as folder:
        groups = [run_schemas(), run_tools(Path(folder) / "tools.py"), run_servers()]
    for group in groups:
        figures = f"{group.modes} modes, {group.crashes} crashes, {group.hangs} hangs"
        print(f"hostile {group.name}: {figures}; the slowest took {group.slowest:.1f} s")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"hostile: {sum(group.modes for group in groups)} modes in all, {memory:.0f} MB at most")
    if any(group.crashes or group.hangs for group in groups):
        sys.exit(1)


if __name__ == "__main__":
    main()
