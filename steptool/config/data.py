"""The sections `data` and `tools`: where tasks and recordings come from, what executes the calls, and the limits on a
call."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from steptool.config.base import FreeMapping, Natural, Positive, Share, StrictModel, did_you_mean

SOURCE_NAMES = ("desk", "toolbench", "jsonl", "recorded", "bfcl", "environment")


def _check_source(name: str) -> str:
    if name not in SOURCE_NAMES and ":" not in name:
        raise ValueError(
            f"expected one of {', '.join(SOURCE_NAMES)}, or package.module:Class for a source of your own, got {name!r}"
            + did_you_mean(name, SOURCE_NAMES)
        )
    return name


ENVIRONMENT_NAMES = ("bfcl", "desk", "functions", "mcp", "nemo_gym", "openenv", "replay", "toolbench", "verifiers")


def _check_environment(name: str) -> str:
    if name and name not in ENVIRONMENT_NAMES and ":" not in name:
        raise ValueError(
            f"expected one of {', '.join(ENVIRONMENT_NAMES)}, or package.module:Class for your own, got {name!r}"
            + did_you_mean(name, ENVIRONMENT_NAMES)
        )
    return name


def _check_distinct(places: list[str]) -> list[str]:
    """Refuse a place that another one of the list contains: its records would be read twice."""
    paths = [PurePath(place) for place in places]
    for index, path in enumerate(paths):
        for other in paths[:index]:
            if path == other:
                raise ValueError(f"'{path}' is named twice: its records would count twice")
            if path.is_relative_to(other) or other.is_relative_to(path):
                inner, outer = sorted((path, other), key=lambda p: len(p.parts), reverse=True)
                raise ValueError(f"'{inner}' lies in '{outer}': its records would count twice")
    return places


Places = Annotated[list[str], AfterValidator(_check_distinct)]
"""Files, folders or urls, none within another."""


class DataConfig(StrictModel):
    """Where the tasks come from."""

    source: Annotated[str, AfterValidator(_check_source)] = "desk"
    """desk: the embedded world; toolbench: instruction files of ToolBench and StableToolBench; jsonl: files of your own
    tasks; recorded: the tasks of recorded trajectories; bfcl: the multi-turn tasks of the installed package bfcl-eval;
    environment: the tasks that the environment itself lists (docs/environments-of-others.md);
    path/to/file.py:Class or package.module:Class: a source of your own (docs/bring-your-own-data.md)."""
    paths: Places = Field(default_factory=list)
    """Files, folders or urls that the source reads. The sources desk and bfcl need none."""
    recorded_answers: Places = Field(default_factory=list)
    """Files, folders or urls of recorded trajectories, in any form: demonstrations for the warm start and responses for
    the replay environment. The source 'recorded' adds its own paths by itself."""
    environment: Annotated[str, AfterValidator(_check_environment)] = ""
    """The environment that executes the calls of tasks from files that name none; empty: replay. It also provides the
    tools for tasks and recordings that list none."""
    train_queries: Positive = 2400
    """Number of training queries. The desk draws exactly this many; any other source provides at most this many."""
    validation_queries: Positive = 200
    """Number of queries to tune settings on. Training never sees them."""
    heldout_queries: Positive = 400
    """Number of queries that the result is measured on. Training never sees them."""
    exact_splits: bool = True
    """How tasks that name no split are distributed. true: each split gets exactly the number above, or its proportion
    if there are fewer tasks. false: the text of a task alone decides, so that the task stays in its split whatever
    other tasks come and go. `workflows/retrain.py` always uses false."""
    first: list[str] = Field(default_factory=list)
    """SHA-256 digests of files. If the numbers above leave tasks or recordings out, those of these files are taken
    first. `workflows/retrain.py` lists the new files here."""
    keep_failing_solutions: bool = False
    """Whether a reference solution is used as a demonstration even if one of its calls fails. Ingest names each such
    solution."""
    long_share: Share = 0.5
    """Share of queries with several goals (desk only)."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.source == "recorded":
            try:
                _check_distinct([*self.paths, *self.recorded_answers])
            except ValueError as error:
                expected = "expected other recordings in recorded_answers than in paths"
                raise ValueError(f"{expected}, which the source 'recorded' reads already; {error}") from None
        return self


class McpConfig(StrictModel):
    """The server for the environment mcp: a command or a url (docs/tools/mcp.md)."""

    command: list[str] = Field(default_factory=list)
    """Program and arguments of a server that talks over its standard input and output."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program, besides PATH, HOME and the like. ${NAME} stands for a variable of the run's
    own environment."""
    url: str = ""
    """Address of a server that talks streamable HTTP, in place of a command."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of every request to the url. ${NAME} stands for a variable of the run's own environment."""
    shared: bool = False
    """Whether all episodes share one process or connection. Otherwise each episode has its own."""


class ToolBenchConfig(StrictModel):
    """The tools of ToolBench for the environment toolbench: a server of the /virtual protocol, responses recorded
    earlier, or both (docs/tools/toolbench.md)."""

    url: str = ""
    """Address of the server, such as http://localhost:8080/virtual; empty: answers come from the cache alone."""
    key_variable: str = "TOOLBENCH_KEY"
    """Environment variable that holds the key for the server; it may be unset where the server needs none."""
    strip: Literal["", "truncate", "filter", "random"] = "truncate"
    """How the server shortens the answers of an API, in ToolBench's terms; StableToolBench's server ignores it."""
    cache: str = ""
    """File of recorded responses. It is read before the server is asked, and the server's answers are added to it;
    empty: no file. A file behind a url is only read."""


class ToolsConfig(StrictModel):
    """What executes the calls, and the limits on each call."""

    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a call may take, further attempts included. A call that takes longer is a failed step."""
    retries: Natural = 2
    """Number of further attempts after a transport error. Each waits twice as long as the one before."""
    concurrency: Positive = 32
    """Number of calls of different episodes that run at once, in an environment whose calls may block."""
    observation_limit: Positive = 8192
    """Largest number of characters of an observation. A longer one is cut and says so."""
    functions: str = ""
    """Python tools for the environment functions: package.module:name or path/to/file.py:name of a class, whose public
    methods are the tools, or of a list of functions (docs/tools/functions.md)."""
    isolation: Literal["thread", "process"] = "thread"
    """Where Python tools run. thread: in this process, fast, but a tool that hangs stays behind; process: each episode
    in a process of its own, which is ended when a call takes too long."""
    mcp: McpConfig = McpConfig()
    toolbench: ToolBenchConfig = ToolBenchConfig()
    settings: FreeMapping = Field(default_factory=dict)
    """Settings of the environments verifiers, openenv and nemo_gym, and of an environment class of your own that
    data.environment names: the keyword arguments that it is made with (docs/environments-of-others.md,
    docs/bring-your-own-tools.md)."""
