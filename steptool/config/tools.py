"""The section `tools`: what answers the calls, and the limits on every call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from steptool.config.base import Positive, StrictModel


class McpConfig(StrictModel):
    """An MCP server: a program to start or an address to call. ${NAME} stands for an environment variable of ours."""

    command: list[str] = Field(default_factory=list)
    """Program and arguments of a server that talks over its standard input and output."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program, besides PATH, HOME and the like."""
    url: str = ""
    """Address of a server that talks streamable HTTP, in place of a command."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of every request to the url."""
    shared: bool = False
    """One process or connection for all episodes at once, instead of one for each."""


class ToolBenchConfig(StrictModel):
    """Tools of ToolBench: a server of the `/virtual` protocol, responses recorded earlier, or both."""

    url: str = ""
    """Address of the server, as in http://localhost:8080/virtual; empty: answers come from the cache alone."""
    key_variable: str = "TOOLBENCH_KEY"
    """Environment variable that holds the key for the server; a server that needs none takes an unset one."""
    strip: Literal["", "truncate", "filter", "random"] = "truncate"
    """How the server shortens what an API says: ToolBench's names; StableToolBench's server does not look at it."""
    cache: str = ""
    """File of recorded responses, asked before the server and filled from it; empty: none. A url is only read."""


class ToolsConfig(StrictModel):
    """What answers the calls, and the limits on every call."""

    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a call may take, further attempts included."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a transport error, each after twice the wait of the one before."""
    concurrency: Positive = 32
    """Calls of different episodes that run at once, where calls may block."""
    observation_limit: Positive = 8192
    """Characters of an observation; a longer one is cut and says so."""
    functions: str = ""
    """Python tools: "package.module:name" or "path/to/file.py:name" of a class or of a list of functions."""
    mcp: McpConfig = McpConfig()
    toolbench: ToolBenchConfig = ToolBenchConfig()
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the environment class of your own that `data.environment` names: the keyword arguments that it is
    made with."""
