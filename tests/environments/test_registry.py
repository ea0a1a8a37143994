from pathlib import Path
from textwrap import dedent

import pytest

from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.catalog import NAMES, open_environment
from steptool.records import Query, StepStatus, ToolCall

OWN = """
    from steptool.environments.base import Environment, Session, ToolResult
    from steptool.records import StepStatus


    class Echo(Session):
        def call(self, call):
            return ToolResult(StepStatus.OK, str(call.arguments["text"]))

        def solved(self, final_answer):
            return None


    class EchoEnvironment(Environment):
        name = "echo"

        def reset(self, query):
            return Echo()
"""


def test_an_environment_of_ones_own_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dedent(OWN))
    environment = open_environment(f"{tmp_path}/mine.py:EchoEnvironment", ToolsConfig())
    session = environment.reset(Query("q", "train", "echo", "go", ()))
    result = session.call(ToolCall("echo", {"text": "hello"}))
    assert (result.status, result.observation) == (StepStatus.OK, "hello")
    with pytest.raises(ValueError, match="'echo' has no tools of its own"):
        environment.tools()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dsek", f"no environment is named 'dsek'; known are {', '.join(NAMES)}"),
        ("nowhere.py:Echo", "environment: there is no file 'nowhere.py'"),
        ("steptool.environments:Echo", "'steptool.environments' has nothing named 'Echo'"),
        ("functions", "tools.functions"),
        ("mcp", "tools.mcp"),
        ("toolbench", "tools.toolbench"),
    ],
)
def test_what_cannot_be_opened_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_environment(name, ToolsConfig())
