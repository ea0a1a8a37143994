"""Trials of modules in files, of endpoints on loopback, and of tools in an environment that notes their calls."""

import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steptool.chat.messages import FINISH_SCHEMA, annotate_tool
from steptool.check.trials import CalledTools, try_endpoints, try_imports, try_tools
from steptool.config import Config, ConfigError, ToolsConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.records import Query, Reference, Step, StepStatus, ToolCall, Trajectory


class NotedSession(Session):
    def __init__(self, made: list[ToolCall]) -> None:
        self._made = made

    def call(self, call: ToolCall) -> ToolResult:
        self._made.append(call)
        failed = call.name == "broken"
        return ToolResult(StepStatus.TOOL_ERROR if failed else StepStatus.OK, "no paper" if failed else "done")


class NotedEnvironment(Environment):
    name = "noted"

    def __init__(self) -> None:
        self.made: list[ToolCall] = []

    def reset(self, query: Query) -> NotedSession:
        return NotedSession(self.made)


def tool(name: str, *required: str, read_only: bool | None = True) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": "string"} for key in required},
        "required": [*required],
    }
    function = {"name": name, "description": "", "parameters": parameters}
    return annotate_tool({"type": "function", "function": function}, read_only)


def query(*calls: ToolCall, tools: tuple[dict[str, Any], ...]) -> Query:
    return Query("q", "train", "noted", "go", (*tools, FINISH_SCHEMA), Reference(calls=calls))


READ, LATER = ToolCall("read", {"key": "a"}), ToolCall("read", {"key": "b"})
TOOLS = (tool("read", "key"), tool("clock"), tool("unknown", "key"), tool("write", read_only=None))


class SlowlyClosedEnvironment(NotedEnvironment):
    def reset(self, query: Query) -> NotedSession:
        session = super().reset(query)
        session.close = lambda: time.sleep(1.5)  # type: ignore[method-assign]
        return session


def test_the_time_of_a_call_does_not_include_the_end_of_its_session() -> None:
    trial = try_tools(SlowlyClosedEnvironment(), [query(READ, tools=TOOLS[:1])], [], ToolsConfig())
    assert 0 <= trial.seconds["read"] < 1.5


def test_tools_that_only_read_get_one_call_with_arguments_of_a_solution() -> None:
    environment = NotedEnvironment()
    trial = try_tools(environment, [query(READ, LATER, tools=TOOLS)], [], ToolsConfig())
    assert environment.made == [READ, ToolCall("clock", {})]
    assert list(trial.seconds) == ["read", "clock"] and trial.mean_seconds >= 0 and not trial.failures
    first, *others = trial.describe()
    assert first.startswith("2 of 4 tools answered a call, ")
    assert others == [
        "not called, since no task or demonstration shows their arguments: unknown",
        "not called, since they do not say that they only read: write",
    ]


def test_all_tools_are_called_where_one_asks_for_it() -> None:
    environment = NotedEnvironment()
    trial = try_tools(environment, [query(READ, tools=TOOLS)], [], ToolsConfig(), CalledTools.ALL)
    assert {call.name for call in environment.made} == {"read", "clock", "write"}
    assert list(trial.left_out) == ["unknown"]


def test_a_demonstration_shows_arguments_and_its_first_call_comes_first() -> None:
    steps = [Step(ToolCall("clock", {}), StepStatus.OK, "9"), Step(READ, StepStatus.OK, "7")]
    task = Query("q", "train", "noted", "go", TOOLS)
    trajectory = Trajectory("t", "q", "noted", "", "p", -1, 0, 1.0, [], [], [], [], steps, "finished", None, None, 0.0)  # type: ignore[arg-type]
    environment = NotedEnvironment()
    try_tools(environment, [task, query(LATER, tools=TOOLS)], [trajectory], ToolsConfig())
    assert environment.made == [LATER, ToolCall("clock", {})]


def test_a_tool_that_fails_is_named_and_no_answer_at_all_is_an_error() -> None:
    tools = (tool("broken"), tool("clock"))
    trial = try_tools(NotedEnvironment(), [query(tools=tools)], [], ToolsConfig())
    assert trial.failures == {"broken": "tool_error: no paper"} and list(trial.seconds) == ["clock"]
    with pytest.raises(ConfigError, match="no tool answers: broken failed with tool_error: no paper"):
        try_tools(NotedEnvironment(), [query(tools=tools[:1])], [], ToolsConfig())


def test_no_call_is_made_where_none_is_wanted() -> None:
    environment = NotedEnvironment()
    trial = try_tools(environment, [query(READ, tools=TOOLS)], [], ToolsConfig(), CalledTools.NONE)
    assert environment.made == [] and next(iter(trial.describe())) == "0 of 4 tools answered a call"


def own_tools(folder: Path, text: str) -> Config:
    """A configuration whose tools are a module with this text."""
    (folder / "tools.py").write_text(f"import os, subprocess, sys, threading, time\n{text}\nTOOLS = [print]\n")
    return Config.model_validate({"tools": {"functions": f"{folder / 'tools.py'}:TOOLS", "timeout": 1.0}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("time.sleep(1e6)", r"did not end within 4 s; if it only needs longer, raise tools\.timeout"),
        ("while True: pass", "did not end within 4 s"),
        ("os._exit(3)", "ends the process, with exit code 3"),
        ("os.kill(os.getpid(), 9)", "ends the process, with exit code -9"),
        ("os.closerange(3, 99); os._exit(0)", "ends the process, with exit code 0"),
        ("os.chdir('/')", r"changes the current folder to /: begin its paths with Path\(__file__\)\.parent"),
        ("sys.path.remove(os.environ['PYTHONPATH'].split(':')[0])", "from sys.path, where the run finds modules"),
    ],
)
def test_a_module_that_would_end_or_harm_the_command_is_named(tmp_path: Path, text: str, problem: str) -> None:
    config = own_tools(tmp_path, text)
    with pytest.raises(ConfigError, match=rf"^tools\.functions: importing '{tmp_path}/tools\.py:TOOLS' .*{problem}"):
        try_imports(config, seconds=4.0)


def test_a_module_that_keeps_its_process_from_ending_is_named(tmp_path: Path) -> None:
    config = own_tools(tmp_path, "threading.Thread(target=time.sleep, args=(1e6,)).start()")
    with pytest.raises(ConfigError, match=r"tools\.py:TOOLS' \(tools\.functions\) .* start threads with daemon=True"):
        try_imports(config, seconds=4.0)


@pytest.mark.parametrize(
    "text", ["raise SystemExit(3)", "1 / 0", "print('x' * 10_000_000)", "sys.path.append('/')", "time.sleep(0.1)"]
)
def test_what_harms_nothing_is_left_to_the_import_of_the_command(tmp_path: Path, text: str) -> None:
    paths = list(sys.path)
    try_imports(own_tools(tmp_path, text))
    assert sys.path == paths and "tools" not in sys.modules  # another process has imported it


def test_a_program_that_a_module_starts_ends_with_the_trial(tmp_path: Path) -> None:
    program = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    try_imports(own_tools(tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(str({program}.pid))"))
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # a killed process is there until its parent, init, has taken note
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    pytest.fail("the program was left behind")


def test_a_configuration_without_own_modules_starts_no_process() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # grows with every process that has ended
    try_imports(Config())
    assert resource.getrusage(resource.RUSAGE_CHILDREN) == before


def test_a_policys_endpoint_gets_a_first_turn_and_a_judge_a_question(chat: SimpleNamespace) -> None:
    server = chat.serve(lambda *_: chat.Answer())
    task = query(tools=TOOLS[:1])
    endpoint = {"base_url": server.url, "model": "m"}
    policies = [{"name": "far", "kind": "endpoint", "endpoint": endpoint}, {"name": "reference", "kind": "playback"}]
    config = Config.model_validate(
        {
            "rewards": {"annotator": "judge", "judge": {"endpoint": {**endpoint, "model": "j"}}},
            "evaluation": {"policies": policies},
        }
    )
    (line,) = try_endpoints(config, task, for_training=False)
    assert line.startswith("endpoint    far: replied after 0.")
    (line,) = try_endpoints(config, task, for_training=True)
    assert line.startswith("endpoint    judge: replied after 0.")
    turn, question = server.requests
    assert turn["messages"] == task.first_messages
    assert [tool["function"]["name"] for tool in turn["tools"]] == ["read", FINISH_SCHEMA["function"]["name"]]
    assert (question["model"], len(question["messages"]), "tools" in question) == ("j", 1, False)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"delay": 30.0}, "no reply before the deadline"),
        ({"status": 401, "body": "{}"}, "answered 401"),
        ({"status": 307, "headers": {"Location": "/v1/chat/completions"}}, "redirect"),
        (
            {"body": "<html>It works!</html>", "headers": {"Content-Type": "text/html"}},
            "is no chat completion: '<html>",
        ),
        ({"body": b"\x1f\x8b broken", "headers": {"Content-Encoding": "gzip"}}, "Error -3 while decompressing"),
    ],
)
def test_an_endpoint_that_does_not_reply_is_refused_in_time(
    chat: SimpleNamespace, fault: dict[str, Any], problem: str
) -> None:
    server = chat.serve(lambda *_: chat.Answer(**fault))
    endpoint = {"base_url": server.url, "model": "m", "timeout": 2.0 if "delay" in fault else 20.0}
    config = Config.model_validate({"rewards": {"annotator": "judge", "judge": {"endpoint": endpoint}}})
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"^rewards\.judge\.endpoint: m at http.*{problem}"):
        list(try_endpoints(config, query(tools=TOOLS), for_training=True))
    assert time.monotonic() - start < 15.0


def test_an_endpoint_that_is_away_is_no_refusal_where_a_file_has_replies(tmp_path: Path) -> None:
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
    judge = {"endpoint": endpoint, "cache": str(tmp_path / "replies.sqlite")}
    config = Config.model_validate({"rewards": {"annotator": "judge", "judge": judge}})
    with pytest.raises(ConfigError, match=r"^rewards\.judge\.endpoint: m at http://127\.0\.0\.1:9/v1"):
        list(try_endpoints(config, query(tools=TOOLS), for_training=True))
    (tmp_path / "replies.sqlite").touch()
    (line,) = try_endpoints(config, query(tools=TOOLS), for_training=True)
    assert "judge: no reply, so that only those in" in line
