"""Sessions of an MCP server with the limits of its configuration, and what their calls are expected to give."""

import json
from pathlib import Path
from typing import Any

from steptool.config import Config, ToolsConfig
from steptool.environments.base import Environment, ToolResult, open_environment
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.records import Query, StepStatus, ToolCall

ROOT = Path(__file__).parents[2]
SERVERS = ROOT / "tests" / "environments" / "mcp" / "servers"
GOOD, ROUGH, ODD = (["python", str(SERVERS / f"{name}.py")] for name in ("good", "rough", "odd"))
QUERY = Query("q", "train", "mcp", "go", ())
ANEW = "; the next call goes to a new server or session, which may know nothing of the calls before"


class World:
    """An environment with the limits of its configuration."""

    def __init__(self, limits: ToolsConfig) -> None:
        self.environment: Environment = open_environment("mcp", Config(tools=limits))
        self.guard = LimitedEnvironment(self.environment, limits)

    def session(self) -> LimitedSession:
        return self.guard.reset(QUERY)


def ask(session: LimitedSession, tool: str, /, **arguments: Any) -> ToolResult:
    return session.call(ToolCall(tool, arguments))


def observe(session: LimitedSession, tool: str, /, **arguments: Any) -> str:
    result = ask(session, tool, **arguments)
    assert result.status is StepStatus.OK, result
    return result.observation


def problem(session: LimitedSession, tool: str, /, **arguments: Any) -> str:
    result = ask(session, tool, **arguments)
    assert result.status is StepStatus.TOOL_ERROR, result
    return str(json.loads(result.observation)["error"])
