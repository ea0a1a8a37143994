import json
import socket
import threading
from pathlib import Path

import pytest

from steptool.config import Config, ToolsConfig, load_config
from steptool.config.base import ConfigError
from steptool.environments.base import ToolResult, open_environment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import StepStatus, ToolCall

OK = StepStatus.OK


def tools(**fields):
    limits = {name: fields.pop(name) for name in ("retries", "timeout", "concurrency") if name in fields}
    return ToolsConfig.model_validate({**limits, "toolbench": fields})


def open_toolbench(**fields):
    return open_environment("toolbench", Config(tools=tools(**fields)))


def call(environment, query, name="forecast_for_sky_watch", **arguments):
    return environment.reset(query).call(ToolCall(name, arguments or {"town": "Bern"}))


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache" / "responses.sqlite")


def test_what_a_server_said_is_not_asked_again_by_anyone(serve, say, query, cache):
    server = serve(lambda request: say(f"rain {len(server.requests)}"))
    rain = ToolResult(OK, '{"error": "", "response": "rain 1"}')
    first, second = open_toolbench(url=server.url, cache=cache), open_toolbench(url=server.url, cache=cache)
    assert [call(e, query) for e in (first, second, first)] == [rain, rain, rain]
    assert len(server.requests) == 1
    assert call(second, query, town="Basel").observation == '{"error": "", "response": "rain 2"}'
    offline = open_toolbench(cache=cache)
    assert call(offline, query) == rain and first.blocking and not offline.blocking
    assert len(server.requests) == 2


def test_without_a_cache_each_call_is_asked(serve, say, query):
    server = serve(lambda request: say(f"rain {len(server.requests)}"))
    environment = open_toolbench(url=server.url)
    assert call(environment, query) != call(environment, query)


def test_failures_are_asked_again(serve, say, query, cache):
    replies = [say("", "Unauthorized error..."), (500, b""), (200, b"<html>"), say("Too many requests"), say("rain")]
    server = serve(lambda request: replies[len(server.requests) - 1])
    environment = open_toolbench(url=server.url, cache=cache)
    statuses = [call(environment, query).status for _ in range(6)]
    assert statuses == [StepStatus.TOOL_ERROR] * 4 + [OK, OK] and len(server.requests) == 5


def test_offline_a_call_never_recorded_is_a_failed_step_that_says_so(serve, say, query, cache):
    call(open_toolbench(url=serve(lambda request: say("rain")).url, cache=cache), query)
    result = call(open_toolbench(cache=cache), query, town="Basel")
    assert result.status is StepStatus.TOOL_ERROR
    assert json.loads(result.observation) == {"error": "No response is recorded for this call.", "response": ""}


def test_unknown_tools_and_wrong_arguments_never_reach_the_server(serve, say, query):
    server = serve(lambda request: say("rain"))
    environment = open_toolbench(url=server.url)
    assert call(environment, query, "floods_for_sea").status is StepStatus.UNKNOWN_TOOL
    wrong = call(environment, query, town=3)
    assert wrong.status is StepStatus.INVALID_ARGUMENTS and "'town' must be string" in wrong.observation
    unnamed = call(environment, query, "tides_for_sea")
    assert unnamed.status is StepStatus.TOOL_ERROR and "does not say which API tides_for_sea is" in unnamed.observation
    assert server.requests == []


def test_a_server_that_comes_late_is_asked_again(serve, say, query):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    limits = tools(url=f"http://127.0.0.1:{port}/virtual", retries=8, timeout=10)
    session = LimitedEnvironment(open_environment("toolbench", Config(tools=limits)), limits).reset(query)
    starting = threading.Timer(0.15, lambda: serve(lambda request: say("rain"), port))
    starting.start()
    assert session.call(ToolCall("forecast_for_sky_watch", {"town": "Bern"})).status is OK
    starting.join()


def test_a_server_that_is_gone_costs_the_step_and_is_not_recorded(query, cache):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        limits = tools(url=f"http://127.0.0.1:{unheard.getsockname()[1]}/virtual", cache=cache, retries=1)
        session = LimitedEnvironment(open_environment("toolbench", Config(tools=limits)), limits).reset(query)
        result = session.call(ToolCall("forecast_for_sky_watch", {"town": "Bern"}))
    assert result.status is StepStatus.TOOL_ERROR and "cannot be reached: ConnectError" in result.observation
    assert "No response is recorded" in call(open_toolbench(cache=cache), query).observation


def test_episodes_ask_side_by_side_and_fill_one_cache(serve, say, query, cache):
    meeting = threading.Barrier(16)

    def answer(request):
        meeting.wait(5)
        return say(json.loads(request["tool_input"])["town"])

    server = serve(answer)
    limits = tools(url=server.url, cache=cache, concurrency=16)
    guard = LimitedEnvironment(open_environment("toolbench", Config(tools=limits)), limits)
    episodes = [(guard.reset(query), ToolCall("forecast_for_sky_watch", {"town": str(n)})) for n in range(32)]
    results = [each.result() for each in [guard.submit(session.call, call) for session, call in episodes]]
    assert [json.loads(r.observation)["response"] for r in results] == [str(n) for n in range(32)]
    offline = open_toolbench(cache=cache)
    assert [offline.reset(query).call(c) for _, c in episodes] == results


def test_the_key_comes_from_the_environment_and_is_not_recorded(serve, say, query, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key\n")
    server = serve(lambda request: say(request["toolbench_key"] + request["strip"]))
    file = tmp_path / "responses.sqlite"
    environment = open_toolbench(url=server.url, key_variable="MY_KEY", strip="filter", cache=str(file))
    assert call(environment, query).observation == '{"error": "", "response": "[key]filter"}'
    environment.close()
    assert server.requests[0][2]["toolbench_key"] == "secret-key" and b"[key]filter" in file.read_bytes()
    monkeypatch.delenv("MY_KEY")
    call(open_toolbench(url=server.url, key_variable="MY_KEY"), query)
    assert server.requests[1][2]["toolbench_key"] == ""


def test_the_example_asks_a_server_and_keeps_what_it_says():
    config = load_config(Path(__file__).parents[3] / "configs" / "toolbench_live.yaml")
    settings = config.tools.toolbench
    assert config.data.environment == "toolbench" and settings.url and settings.cache


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "neither 'url' nor 'cache' is given"),
        ({"cache": "missing.sqlite"}, r"cache: '.*missing\.sqlite' does not exist; build it"),
        ({"cache": "notes.txt"}, r"cache: '.*notes\.txt' cannot be opened: file is not a database"),
        ({"cache": "folder", "url": "http://localhost/virtual"}, "cache: '.*folder' cannot be opened"),
        ({"cache": "notes.txt/r.sqlite", "url": "http://localhost/virtual"}, "cannot be opened"),
        ({"url": "localhost:8080"}, "expected an address such as"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_the_field(tmp_path, fields, words):
    (tmp_path / "notes.txt").write_text("no database " * 100)
    (tmp_path / "folder").mkdir()
    placed = fields | ({"cache": str(tmp_path / fields["cache"])} if "cache" in fields else {})
    with pytest.raises(ConfigError, match=rf"tools\.toolbench.*{words}"):
        open_toolbench(**placed)
