import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import yaml

from mcp_sessions import ANEW, GOOD, ODD, QUERY, ROOT, ROUGH, World, ask, observe, problem
from steptool.chat.messages import reads_only
from steptool.config import Config, McpConfig, ToolsConfig, load_config
from steptool.config.base import ConfigError
from steptool.environments.base import ToolResult, TransportError, open_environment
from steptool.environments.limits import LimitedSession
from steptool.environments.mcp.environment import Connector
from steptool.environments.mcp.transport import LARGEST, MessageReader
from steptool.records import StepStatus, ToolCall


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def check_good(session: LimitedSession) -> None:
    assert observe(session, "add", a=2, b=3) == "5"
    assert observe(session, "blocks") == "a text\n[image image/png]\n[resource_link file:///more.txt]\nthe page"
    failure = ask(session, "fail", reason="x")  # servers differ by version in what they tell
    assert failure.status is StepStatus.TOOL_ERROR
    assert failure.observation in (
        "Error executing tool fail",
        "Error executing tool fail: x",
    )
    assert ask(session, "add", a=2, b="3").status is StepStatus.INVALID_ARGUMENTS
    assert ask(session, "subtract", a=2, b=3) == ToolResult(
        StepStatus.UNKNOWN_TOOL, '{"error": "the server has no tool named \'subtract\'"}'
    )
    assert observe(session, "add", a=4, b=3) == "7"
    assert session.solved("7") is None


def test_a_server_over_stdio_answers(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    session = world(command=GOOD, env={"TOKEN": "key ${SECRET}"}).session()
    check_good(session)
    assert observe(session, "environment", name="TOKEN") == "key s3cret"
    assert observe(session, "environment", name="SECRET") == "not set"


def test_each_episode_has_a_process_of_its_own(world: Callable[..., World]) -> None:
    rough = world(command=ROUGH)
    first, second = rough.session(), rough.session()
    assert [observe(first, "count"), observe(first, "count"), observe(second, "count")] == ["1", "2", "1"]


def test_tool_lists_become_schemas(world: Callable[..., World], http: str) -> None:
    tools = world(url=http).environment.tools()
    assert [tool["function"]["name"] for tool in tools] == ["add", "wait", "waits", "environment", "fail", "blocks"]
    assert tools[0]["function"]["description"] == "Add two numbers."
    assert tools[0]["function"]["parameters"]["required"] == ["a", "b"]


def test_a_server_over_http_answers_64_episodes_at_once(world: Callable[..., World], http: str) -> None:
    over_http = world(url=http)
    sessions = [over_http.session() for _ in range(64)]
    check_good(sessions[0])
    sums = [over_http.guard.submit(observe, session, "add", a=n, b=1) for n, session in enumerate(sessions)]
    assert [each.result() for each in sums] == [str(n + 1) for n in range(64)]
    for closing in [over_http.guard.submit(session.close) for session in sessions]:
        closing.result()


def test_long_lists_are_read_to_their_end_and_names_are_mended(world: Callable[..., World]) -> None:
    rough = world(command=ROUGH)
    names = [tool["function"]["name"] for tool in rough.environment.tools()]
    assert len(names) == 14 and names[-1] == "docs_read_v2"
    assert observe(rough.session(), "docs_read_v2") == "1"


def test_a_bad_tool_costs_that_tool_and_equal_names_get_numbers(world: Callable[..., World]) -> None:
    odd = world(command=ODD)
    with pytest.warns(RuntimeWarning) as warned:
        names = [tool["function"]["name"] for tool in odd.environment.tools()]
    assert names == [
        *("docs_read", "docs_read_2", "docs_read_2_2", "__", "___2", "x" * 64, "x" * 62 + "_2"),
        *("draft", "shape", "token", "slow"),
    ]
    text = str(warned[0].message)
    tool = "an object with `name` (a text) and `inputSchema` (an object)"
    assert f'tool \'no_schema\': expected {tool}, got {{"name": "no_schema"}}' in text
    assert "red" in text and "\x1b" not in text and "\x9b" not in text
    assert "tool 'no_object': inputSchema.type: expected \"object\", got 'string'" in text
    assert "tool 'endless': function.parameters: the schema refers to itself without end" in text
    session = odd.session()
    assert [observe(session, name) for name in ("docs_read_2", "docs_read_2_2", "___2")] == [
        *("docs/read {}", "docs_read_2 {}", "新闻 {}")
    ]
    assert ask(session, "endless").status is StepStatus.UNKNOWN_TOOL


def test_a_schema_is_read_in_the_draft_that_it_declares(world: Callable[..., World]) -> None:
    session = world(command=ODD).session()
    assert ask(session, "draft", pair=["a", 1]).status is StepStatus.INVALID_ARGUMENTS
    assert problem(session, "draft", pair=[1, "a"]) == "not with "


def test_an_output_schema_cannot_hold_up_a_call(world: Callable[..., World]) -> None:
    session = world(command=ODD, timeout=5.0).session()
    assert json.loads(observe(session, "slow")) == {"text": "a" * 60 + "!"}


def test_a_server_without_a_usable_tool_is_refused_with_all_reasons(world: Callable[..., World]) -> None:
    with pytest.raises(ConfigError, match=r"no_schema.*, got .*; tool 'endless'.*none of the server's tools"):
        world(command=[*ODD, "only-bad"]).environment.tools()


def test_what_a_server_repeats_of_a_secret_is_hidden(world: Callable[..., World], monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET", 'sk-"very"-secret')
    odd = world(command=ODD, env={"TOKEN": "${SECRET}"})
    with pytest.warns(RuntimeWarning):
        described = {t["function"]["name"]: t["function"]["description"] for t in odd.environment.tools()}
    assert described["token"] == "[key]"
    session = odd.session()
    assert json.loads(observe(session, "token")) == {"as is": "[key]", "escaped": "[key]"}
    assert problem(session, "draft") == "not with [key]"


def test_what_a_server_says_beside_its_answers_does_no_harm(
    world: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    session = world(command=ROUGH).session()
    assert [observe(session, "chatter"), observe(session, "flood"), observe(session, "count")] == ["1", "2", "3"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_wrong_answer_costs_its_step_only(world: Callable[..., World]) -> None:
    session = world(command=ROUGH, timeout=3.0).session()
    observe(session, "count")
    assert problem(session, "refuse") == "no such luck"
    assert problem(session, "broken").startswith(
        "the answer of the server 'rough' to 'broken' cannot be read: expected "
    )
    assert problem(session, "garbage").startswith("no answer within")
    assert observe(session, "count") == "5"


MESSAGE = "a message of JSON-RPC 2.0 with `result` (an object) or `error` (an object with a code and a message)"
RESULT = (
    '`content` (a list of blocks such as {"type": "text", "text": "..."}) and, where there is need, '
    "`structuredContent` (an object) and `isError` (true or false)"
)


@pytest.mark.parametrize(
    ("reply", "expected", "got"),
    [
        ('{"result": "hello"}', MESSAGE, '{"jsonrpc": "2.0", "id": ID, "result": "hello"}'),
        ('{"error": "boom"}', MESSAGE, '{"jsonrpc": "2.0", "id": ID, "error": "boom"}'),
        ('{"output": 5, "jsonrpc": 1}', MESSAGE, '{"jsonrpc": 1, "id": ID, "output": 5}'),
        ('{"result": {"text": "hello"}}', RESULT, '{"text": "hello"}'),
        ('{"result": {"content": "hello"}}', RESULT, '"hello" as `content`'),
        ('{"result": {"content": [{"type": "hologram"}]}}', RESULT, '{"type": "hologram"} as `content.0`'),
        ('{"result": {"content": ["天气"]}}', RESULT, '"天气" as `content.0`'),
        ('{"result": {"content": [], "isError": "maybe"}}', RESULT, '"maybe" as `isError`'),
        (json.dumps({"result": {"content": "x" * 300}}), RESULT, f'"{"x" * 199}... as `content`'),
    ],
)
@pytest.mark.filterwarnings("ignore:tools.mcp")
def test_an_answer_in_another_form_is_told_with_server_and_tool_and_at_once(
    world: Callable[..., World], reply: str, expected: str, got: str
) -> None:
    session = world(command=ODD).session()
    message = re.sub('"id": [0-9]+', '"id": ID', problem(session, "shape", text=reply))
    assert message == f"the answer of the server 'odd' to 'shape' cannot be read: expected {expected}, got {got}"
    assert observe(session, "token")


def list_children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_a_start_that_is_called_off_leaves_no_process_and_no_word(caplog: pytest.LogCaptureFixture) -> None:
    others = list_children()
    for _ in range(6):
        connector = Connector(McpConfig(command=GOOD))
        with ThreadPoolExecutor() as threads:
            connection = threads.submit(connector.connect, 20.0)
            while not list_children() - others:
                pass
            connector.close()
        assert connection.exception() and not list_children() - others
    assert not caplog.messages


def test_an_answer_over_stdio_that_is_too_long_costs_its_step_only(world: Callable[..., World]) -> None:
    rough = world(command=ROUGH)
    session = rough.session()
    pid = observe(session, "pid")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert problem(session, "immense") == "the answer is longer than 8 MiB"
    assert observe(session, "pid") == pid
    assert problem(session, "endless") == "the answer is longer than 8 MiB"
    session.close()
    assert is_gone(int(pid))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 << 10  # KiB: less than one of the answers


def test_a_message_is_read_however_it_is_cut() -> None:
    lines = b'{"jsonrpc":"2.0","id":1,"result":{}}\n{"jsonrpc":"2.0","method":"a"}\nno message\n'
    for size in (1, 7, len(lines)):
        reader = MessageReader()
        items = [item for n in range(0, len(lines), size) for item in reader.feed(lines[n : n + size])]
        assert [type(getattr(item, "message", item)).__name__ for item in items] == [
            "JSONRPCResponse", "JSONRPCNotification", "ValidationError",
        ]  # fmt: skip


def test_a_message_at_the_limit_is_read_and_one_above_is_refused_with_its_id() -> None:
    empty = b'{"jsonrpc":"2.0","id":7,"result":{"a":""}}'
    fitting, long = (empty.replace(b'""', b'"' + b"x" * (LARGEST - len(empty) + more) + b'"') for more in (0, 1))
    reader = MessageReader()
    (item,) = reader.feed(fitting + b"\n")
    assert len(item.message.result["a"]) == LARGEST - len(empty)
    (error,) = reader.feed(long)  # before its end
    assert (error.message.id, error.message.error.message) == (7, "the answer is longer than 8 MiB")
    assert list(reader.feed(long)) == []
    (nameless,) = reader.feed(b"\n" + b"x" * LARGEST + b"x")
    assert str(nameless) == "the answer is longer than 8 MiB"
    assert len(list(reader.feed(b"\n" + empty + b"\n"))) == 1


def test_a_request_without_an_answer_is_called_off(world: Callable[..., World]) -> None:
    session = world(command=ROUGH, timeout=3.0).session()
    assert observe(session, "cancelled") == "[]"
    assert problem(session, "dawdle").startswith("no answer within")
    assert len(json.loads(observe(session, "cancelled"))) == 1
    assert observe(session, "count") == "4"  # the same process


def test_a_server_that_dies_costs_its_step_and_the_next_call_gets_another(world: Callable[..., World]) -> None:
    session = world(command=ROUGH).session()
    first = int(observe(session, "pid"))
    assert problem(session, "die") == f"the server was lost (it said: out of cheese){ANEW}"
    assert is_gone(first)
    second = int(observe(session, "pid"))
    assert second != first
    session.close()
    assert is_gone(second)


def test_a_server_that_hangs_is_replaced_and_leaves_no_process(world: Callable[..., World]) -> None:
    rough = world(command=ROUGH, timeout=3.0)
    session, other = rough.session(), rough.session()
    hung, left = int(observe(session, "pid")), int(observe(other, "pid"))
    assert problem(session, "hang").startswith("no answer within")
    assert problem(session, "count") == f"no answer within 2.7 s, as to the call before{ANEW}"
    assert observe(session, "count") == "1"
    assert problem(other, "hang").startswith("no answer within")
    rough.environment.close()  # with a process that hung and was let go, one that works, and one that hangs
    assert is_gone(hung) and is_gone(left)


def test_all_episodes_may_share_one_server(world: Callable[..., World]) -> None:
    rough = world(command=ROUGH, shared=True)
    rough.environment.tools()
    first, second = rough.session(), rough.session()
    pid = observe(first, "pid")
    assert observe(second, "pid") == pid
    first.close()
    assert observe(second, "count") == "3"
    assert problem(second, "die").startswith("the server was lost")
    assert observe(rough.session(), "pid") != pid
    latest = int(observe(second, "pid"))
    rough.environment.close()
    assert is_gone(latest)


def test_no_server_outlives_a_program_that_ends_by_an_exception() -> None:
    program = f"""
from steptool.config import Config, ToolsConfig
from steptool.environments.base import open_environment
from steptool.records import Query, ToolCall
tools = ToolsConfig.model_validate({{"timeout": 3.0, "mcp": {{"command": {ROUGH}}}}})
environment = open_environment("mcp", Config(tools=tools))
session = environment.reset(Query("q", "train", "mcp", "go", ()))
print(session.call(ToolCall("pid", {{}})).observation, flush=True)
session.call(ToolCall("hang", {{}}))
raise RuntimeError("halfway")
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert "halfway" in process.stderr
    assert is_gone(int(process.stdout))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["no-such-program"], "No such file or directory: 'no-such-program'"),
        (["python", "-c", "raise SystemExit('no token given')"], "Connection closed (it said: no token given)"),
        (["python", "-c", "import sys; sys.stdin.read()"], "no connection within 2.7 s"),
    ],
)
def test_a_server_that_does_not_start_is_an_error_that_may_be_tried_again(
    world: Callable[..., World], command: list[str], reason: str
) -> None:
    environment = world(command=command, timeout=3.0).environment
    with pytest.raises(TransportError) as excinfo:
        environment.reset(QUERY).call(ToolCall("count", {}))
    assert str(excinfo.value).startswith(command[0]) and reason in str(excinfo.value)
    with pytest.raises(ConfigError, match=r"tools\.mcp: the server does not list its tools: "):
        environment.tools()


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({}, "needs either tools.mcp.command or tools.mcp.url"),
        ({"command": ["python"], "url": "http://127.0.0.1/mcp"}, "needs either tools.mcp.command or tools.mcp.url"),
        ({"command": ["python"], "env": {"KEY": "${NOT_SET_ANYWHERE}"}}, "tools.mcp.env: the environment variable"),
        ({"url": "http://127.0.0.1/mcp", "headers": {"Authorization": "pay $5"}}, "tools.mcp.headers: Invalid"),
    ],
)
def test_a_server_that_cannot_be_told_from_the_configuration_is_refused(server: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        open_environment("mcp", Config(tools=ToolsConfig.model_validate({"mcp": server})))


def test_the_examples_tasks_are_solved_by_their_reference(world: Callable[..., World]) -> None:
    config = load_config(ROOT / "configs/mcp.yaml")
    session = world(**config.tools.mcp.model_dump()).session()
    tasks = [json.loads(line) for line in (ROOT / config.data.paths[0]).read_text().splitlines()]
    for task in tasks[:3]:  # of each kind one, and none changes what another asks for
        for call in task["reference"]["calls"]:
            observation = observe(session, call["name"], **call["arguments"])
        assert observation == task["reference"]["answer"]
    assert [task["split"] for task in tasks] == ["train"] * 6 + ["validation"] * 3 + ["heldout"] * 3


def test_hints_of_the_server_say_which_tools_only_read(world: Callable[..., World]) -> None:
    tools = world(command=["python", "examples/mcp/server.py"]).environment.tools()
    assert {tool["function"]["name"]: reads_only(tool) for tool in tools} == {
        "shelf": True,
        "available": True,
        "lend": None,
    }


def test_the_documented_settings_are_accepted() -> None:
    page = (ROOT / "docs/tools/mcp.md").read_text(encoding="utf-8")
    settings = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert Config.model_validate(settings).tools.mcp.command == ["npx", "-y", "@scope/server"]
