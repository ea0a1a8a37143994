"""The sections `data` and `tools`: where tasks and recordings come from, what answers the calls, and its limits."""

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


def _are_distinct(places: list[str]) -> list[str]:
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


Places = Annotated[list[str], AfterValidator(_are_distinct)]
"""Files, folders or urls, none within another."""


class DataConfig(StrictModel):
    """Where the tasks come from."""

    source: Annotated[str, AfterValidator(_check_source)] = "desk"
    """desk: the embedded world; toolbench: instruction files of ToolBench and StableToolBench; jsonl: files of your own
    tasks; recorded: the tasks of recorded trajectories; bfcl: the multi-turn tasks of the installed package bfcl-eval;
    environment: the tasks that the environment itself lists (docs/environments-of-others.md);
    path/to/file.py:Class or package.module:Class: a source of your own (docs/bring-your-own-data.md)."""
    paths: Places = Field(default_factory=list)
    """Files, folders or urls of the source; none for desk and bfcl."""
    recorded_answers: Places = Field(default_factory=list)
    """Files, folders or urls of recorded trajectories, in any form: demonstrations for the warm start and responses for
    the replay environment. Those of the source recorded need not be named again."""
    environment: Annotated[str, AfterValidator(_check_environment)] = ""
    """What answers the calls of tasks from files that name no environment; empty: replay. It also gives the tools of
    tasks and recordings that list none."""
    train_queries: Positive = 2400
    """Training queries: drawn from the world, or kept at most from the source."""
    validation_queries: Positive = 200
    """Queries to tune settings on, which training never sees."""
    heldout_queries: Positive = 400
    """Queries that the result is measured on, which training never sees."""
    exact_splits: bool = True
    """Whether tasks that name no split fill the splits exactly: as many of each as the numbers say, or in their
    proportions where there are fewer tasks. Otherwise the text of a task alone decides, so that it stays in its split
    whatever other tasks come and go; `workflows/retrain.py` always draws like that."""
    first: list[str] = Field(default_factory=list)
    """SHA-256 digests of files whose tasks and recordings come first where one of the numbers above leaves some out;
    workflows/retrain.py names the new ones."""
    keep_failing_solutions: bool = False
    """Whether reference solutions with a call that fails are demonstrations too. Ingest names each of them."""
    long_share: Share = 0.5
    """Share of queries with several goals (desk only)."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.source == "recorded":
            try:
                _are_distinct([*self.paths, *self.recorded_answers])
            except ValueError as error:
                expected = "expected other recordings in recorded_answers than in paths"
                raise ValueError(f"{expected}, which the source 'recorded' reads already; {error}") from None
        return self


class McpConfig(StrictModel):
    """The server for the environment mcp: a command or a url (docs/tools/mcp.md)."""

    command: list[str] = Field(default_factory=list)
    """Program and arguments of a server that talks over its standard input and output."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program, besides PATH, HOME and the like. ${NAME} stands for a variable of ours."""
    url: str = ""
    """Address of a server that talks streamable HTTP, in place of a command."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of every request to the url. ${NAME} stands for an environment variable of ours."""
    shared: bool = False
    """One process or connection for all episodes at once, instead of one for each."""


class ToolBenchConfig(StrictModel):
    """The tools of ToolBench for the environment toolbench: a server of the /virtual protocol, responses recorded
    earlier, or both (docs/tools/toolbench.md)."""

    url: str = ""
    """Address of the server, such as http://localhost:8080/virtual; empty: answers come from the cache alone."""
    key_variable: str = "TOOLBENCH_KEY"
    """Environment variable that holds the key for the server; it may be unset where the server needs none."""
    strip: Literal["", "truncate", "filter", "random"] = "truncate"
    """How the server shortens what an API says, by ToolBench's names; StableToolBench's server ignores it."""
    cache: str = ""
    """File of recorded responses, asked before the server and filled from it; empty: none. A url is only read."""


class ToolsConfig(StrictModel):
    """What answers the calls, and the limits on every call of a tool."""

    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a call may take, further attempts included. A call that takes longer is a failed step."""
    retries: Natural = 2
    """Further attempts after a transport error, each after twice the wait of the one before."""
    concurrency: Positive = 32
    """Calls of different episodes that run at once, where calls may block."""
    observation_limit: Positive = 8192
    """Characters of an observation; a longer one is cut and says so."""
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
