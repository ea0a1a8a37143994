"""The section `tools`: what answers the calls, and the limits on every call."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from steptool.config.base import FreeMapping, Natural, Positive, StrictModel


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
    """Settings of the environment class of your own that data.environment names: the keyword arguments that it is made
    with (docs/bring-your-own-tools.md)."""
