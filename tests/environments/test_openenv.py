"""Environments of the real package openenv, played over its protocol: one with tools, one with actions of one kind.

The package cannot be installed beside ours: OPENENV_PYTHON names an interpreter that has it (make test-environments).
tests/policies/test_serve_environment.py plays what we serve by the same adapter, without the package.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

pytest.importorskip("websockets", reason="pip install 'steptool[environments]'")

from listed_tasks import finish, read_tasks
from servers import serve_app, start_server
from steptool.config import Config, ConfigError, ToolsConfig
from steptool.environments.base import VerdictError, open_environment
from steptool.environments.openenv import OpenEnvEnvironment
from steptool.policies.text_policies import play_back
from steptool.records import FINISH, Query, StepStatus, StopReason, ToolCall

PYTHON = os.environ.get("OPENENV_PYTHON", "")
SERVER = Path(__file__).parents[2] / "examples" / "openenv" / "server.py"
NO_ROUTES: Mapping[str, Any] = MappingProxyType({})
needs_package = pytest.mark.skipif(not PYTHON, reason="OPENENV_PYTHON names no interpreter with openenv")


def config_of(**settings: Any) -> Config:
    data = {"source": "environment", "environment": "openenv"}
    return Config.model_validate({"data": data, "tools": {"settings": settings}})


def sell(item: str, pieces: int) -> ToolCall:
    return ToolCall("sell", {"item": item, "pieces": pieces})


@needs_package
def test_tasks_tools_and_rewards_of_an_environment_with_tools(tmp_path: Path) -> None:
    with start_server([PYTHON, str(SERVER), "tools"]) as url:
        config = config_of(url=url, answer="finish_day.note")
        tasks = read_tasks(config, tmp_path)
        assert {name: query.split for name, query in tasks.items()} == {
            "train-0": "train", "train-1": "train", "test-0": "heldout",
        }  # fmt: skip
        first = tasks["train-0"]
        assert first.instruction == "Sell every lamp, then end the day."
        assert [tool["function"]["name"] for tool in first.tools] == ["stock", "sell", "finish_day", FINISH]
        end = ToolCall("finish_day", {"note": "bye"})
        played = [
            (first, [ToolCall("stock", {"item": "lamp"}), sell("lamp", 2), finish("done")]),
            (first, [sell("lamp", 1), end]),
            (first, [ToolCall("stock", {"item": "moon"}), ToolCall("stock", {}), ToolCall("stock", {"item": "lamp"})]),
            (tasks["test-0"], [sell("kettle", 7), end]),
        ]
        with closing(open_environment("openenv", config)) as environment:
            episodes = play_back(played, environment, limits=config.tools)
    assert [episode.solved for episode in episodes] == [1.0, 0.5, 0.0, 1.0]
    ended = [StopReason.FINISHED, StopReason.ENDED, episodes[2].stop_reason, StopReason.ENDED]
    assert [episode.stop_reason for episode in episodes] == ended
    moon, missing, lamp = episodes[2].steps[:3]
    assert (moon.status, missing.status) == (StepStatus.TOOL_ERROR, StepStatus.INVALID_ARGUMENTS)
    assert "there is no moon" in moon.observation and lamp.observation == "2"


@needs_package
def test_actions_of_one_kind_are_one_tool_and_rewards_are_added_up(tmp_path: Path) -> None:
    with start_server([PYTHON, str(SERVER), "guess"]) as url:
        config = config_of(url=url, reward="sum", resets=[{"seed": 4}, {"seed": 6}])
        tasks = read_tasks(config, tmp_path)
        assert {query.instruction for query in tasks.values()} == {"Find the number from 1 to 8."}
        (act,) = [tool["function"] for tool in tasks["task-0"].tools if tool["function"]["name"] != FINISH]
        assert act["name"] == "act" and list(act["parameters"]["properties"]) == ["number"]
        guesses = [[3, 5], [7], ["x", 1]]
        played = [
            (tasks[task], [ToolCall("act", {"number": n}) for n in numbers])
            for task, numbers in zip(["task-0", "task-1", "task-1"], guesses, strict=True)
        ]
        with closing(open_environment("openenv", config)) as environment:
            episodes = play_back(played[:2], environment, limits=config.tools)
            assert [episode.solved for episode in episodes] == [0.875, 1.0]
            assert {episode.stop_reason for episode in episodes} == {StopReason.ENDED}
            (outside,) = play_back(played[2:], environment, limits=config.tools)
        assert outside.steps[0].status is StepStatus.INVALID_ARGUMENTS
        assert outside.solved is None and "lies outside [0, 1]" in outside.check_error


def test_a_server_that_is_away_and_settings_of_another_form_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"127.0.0.1:9/schema cannot be reached"):
        open_environment("openenv", config_of(url="http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match=r"OpenEnvEnvironment: missing a required argument: 'url'"):
        OpenEnvEnvironment.open(ToolsConfig())
    for settings, problem in {
        "reward": ("mean", "expected last or sum, got 'mean'"),
        "answer": ("submit", "expected TOOL.ARGUMENT, got 'submit'"),
        "resets": (["x"], "expected an object of fields, got 'x'"),
    }.items():
        with pytest.raises(ConfigError, match=problem[1]):
            OpenEnvEnvironment("http://127.0.0.1:9", **{settings: problem[0]})  # type: ignore[arg-type]


LOOK = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}


@contextmanager
def odd_server(answers: Mapping[str, Any], routes: Mapping[str, Any] = NO_ROUTES) -> Iterator[str]:
    """A server that answers each kind of message with one value, and each route with another."""

    async def play(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            message = json.loads(text)
            kind = "list" if (message.get("data") or {}).get("type") == "list_tools" else message["type"]
            await socket.send_json(answers[kind])

    async def route(request: Request) -> Response:
        values = {"/schema": {"action": {"title": "CallToolAction"}}, **routes}
        return JSONResponse(values.get(request.url.path), 200 if request.url.path in values else 404)

    app = Starlette(routes=[WebSocketRoute("/ws", play), Route("/{path:path}", route, methods=["GET", "POST"])])
    with serve_app(app) as address:
        yield address


def tell(**data: Any) -> dict[str, Any]:
    return {"type": "observation", "data": data}


BEGIN = {"list": tell(observation={"tools": [LOOK]}), "reset": tell(observation={"text": "Look around."})}


@pytest.mark.parametrize(
    ("step", "solved", "seen"),
    [
        (tell(observation={"text": "a lamp"}, reward="0.5", done=True), 0.5, "a lamp"),
        (tell(observation={"text": "a lamp"}, reward="high", done=True), "the reward is no number: high", "a lamp"),
        (tell(observation={"text": "a lamp"}, reward=[1], done=True), r"the reward is no number: \[1\]", "a lamp"),
        (tell(observation="a lamp", reward=1, done=True), 1.0, "a lamp"),
        (tell(observation={"tool_name": "look", "error": "too dark"}, done=True), None, '{"error": "too dark"}'),
    ],
)
def test_odd_answers_of_a_server_neither_end_the_run_nor_lose_the_end(step: Any, solved: Any, seen: str) -> None:
    with odd_server({**BEGIN, "step": step}) as url, closing(OpenEnvEnvironment(url)) as environment:
        session = environment.reset(Query("q", "train", "openenv", "Look around.", ()))
        result = session.call(ToolCall("look", {}))
        assert (result.observation, result.ends_episode) == (seen, True)
        if isinstance(solved, str):
            with pytest.raises(VerdictError, match=solved):
                session.solved(None)
        else:
            assert session.solved(None) == solved
        session.close()


def test_an_episode_that_ends_at_its_reset_keeps_its_reward() -> None:
    end = tell(observation={"text": "It is over."}, reward=1.0, done=True)
    with odd_server({**BEGIN, "reset": end}) as url, closing(OpenEnvEnvironment(url)) as environment:
        session = environment.reset(Query("q", "train", "openenv", "Look around.", ()))
        assert session.call(ToolCall("look", {})).ends_episode
        assert session.solved(None) == 1.0
        session.close()
    with odd_server({**BEGIN, "reset": end}) as url, closing(OpenEnvEnvironment(url, answer="say.text")) as environment:
        session = environment.reset(Query("q", "train", "openenv", "Look around.", ()))
        assert session.solved("It is over.") == 1.0  # the answer is not sent, since the server would not know of a step
        session.close()


def test_no_call_reaches_another_episode_after_the_connection_was_lost() -> None:
    answers = dict(BEGIN)  # the server cannot answer a step, and ends the connection
    with odd_server(answers) as url, closing(OpenEnvEnvironment(url)) as environment:
        session = environment.reset(Query("q", "train", "openenv", "Look around.", ()))
        with pytest.raises(RuntimeError, match="the connection was lost"):
            session.call(ToolCall("look", {}))
        answers["step"] = tell(observation={"text": "a lamp"}, reward=1.0, done=True)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="and the state of the episode with it"):
                session.call(ToolCall("look", {}))
        with pytest.raises(VerdictError, match="the connection was lost during the episode"):
            session.solved(None)
        session.close()


@pytest.mark.parametrize("answer", [[1], "words", {"type": "observation", "data": [1]}, None])
def test_what_is_no_message_is_an_error_that_says_so(answer: Any) -> None:
    with odd_server({**BEGIN, "step": answer}) as url, closing(OpenEnvEnvironment(url)) as environment:
        session = environment.reset(Query("q", "train", "openenv", "Look around.", ()))
        with pytest.raises(RuntimeError, match="no message of OpenEnv"):
            session.call(ToolCall("look", {}))
        session.close()


@pytest.mark.parametrize(
    ("answers", "routes", "words"),
    [
        ({"list": tell(observation={"tools": [{"description": "?"}]})}, {}, "list its tools: KeyError: 'name'"),
        ({"list": {"type": "error", "data": {"message": "no room"}}}, {}, "does not list its tools: .*no room"),
        ({}, {"/list_environments": ["a", "b"], "/a/splits": []}, "does not list its tasks: ValueError: too many"),
        (
            {"reset": {"type": "error", "data": {"message": "no room"}}},
            {"/list_environments": ["a"]},
            "tasks: .*no room",
        ),
    ],
)
def test_lists_in_another_form_are_refused_with_the_address(answers: Any, routes: Any, words: str) -> None:
    with (
        odd_server({**BEGIN, **answers}, routes) as url,
        closing(OpenEnvEnvironment(url)) as environment,
        pytest.raises(ConfigError, match=words),
    ):
        list(environment.tasks() if routes else environment.tools())
