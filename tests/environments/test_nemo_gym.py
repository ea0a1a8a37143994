"""Resource servers of NeMo Gym, by the real package: counters with state, and tools over MCP.

The real package asks for Python 3.12 and for versions of its own: NEMO_GYM_PYTHON names an interpreter that has it
(make test-environments). Without it a server written after the package's source is played.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from listed_tasks import finish, read_tasks
from servers import serve_app, start_server
from steptool.config import Config, ConfigError
from steptool.data.parsing import IngestError
from steptool.environments.adapters import RewardRange
from steptool.environments.base import VerdictError, open_environment
from steptool.environments.limits import LimitedEnvironment
from steptool.environments.nemo_gym import NemoGymEnvironment
from steptool.policies.text_policies import play_back
from steptool.records import FINISH, Query, Reference, StepStatus, ToolCall

HERE = Path(__file__).parent
PYTHON = os.environ.get("NEMO_GYM_PYTHON", "")
INTEGER = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
TOOLS = [
    {"type": "function", "name": "increment_counter", "parameters": INTEGER, "strict": True, "description": "Add."},
    {
        "type": "function",
        "name": "get_counter_value",
        "parameters": {"type": "object", "properties": {}},
        "strict": True,
    },
]
COUNTING = "resources_servers.example_session_state_mgmt.app:StatefulCounterResourcesServer"
WEATHER = "resources_servers.example_mcp_weather.app:ExampleMCPWeatherResourcesServer"


def make_row(start: int, expected: int, text: str) -> dict[str, Any]:
    """A row in the form of the package's own examples."""
    messages = [{"role": "system", "content": "You count."}, {"role": "user", "content": text}]
    parameters = {"input": messages, "tools": TOOLS}
    return {"responses_create_params": parameters, "initial_count": start, "expected_count": expected}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    package = [PYTHON, str(HERE / "nemo_gym_server.py"), COUNTING]
    with start_server(package if PYTHON else [sys.executable, str(HERE / "nemo_gym_protocol.py")]) as address:
        yield address


@pytest.fixture
def config(url: str, tmp_path: Path) -> Config:
    rows = {
        "train": [make_row(3, 6, "add 1 then add 2 then get the count"), make_row(0, 4, "add 4")],
        "test": [make_row(6, 15, "add 9")],
    }
    files = {split: str(tmp_path / f"{split}.jsonl") for split in rows}
    for split, file in files.items():
        Path(file).write_text("\n".join(map(json.dumps, rows[split])) + "\n", encoding="utf-8")
    data = {"source": "environment", "environment": "nemo_gym"}
    return Config.model_validate({"data": data, "tools": {"settings": {"url": url, "datasets": files}}})


def add(count: Any) -> ToolCall:
    return ToolCall("increment_counter", {"count": count})


def test_the_rows_of_datasets_are_tasks(config: Config, tmp_path: Path) -> None:
    tasks = read_tasks(config, tmp_path / "data")
    assert {name: query.split for name, query in tasks.items()} == {
        "train-0": "train", "train-1": "train", "test-0": "heldout",
    }  # fmt: skip
    first = tasks["train-0"]
    assert first.instruction == "You count.\n\nadd 1 then add 2 then get the count"
    assert [tool["function"]["name"] for tool in first.tools] == ["increment_counter", "get_counter_value", FINISH]
    assert first.tools[0]["function"]["parameters"] == INTEGER


def test_each_episode_has_a_session_of_its_own_and_the_servers_verdict(config: Config, tmp_path: Path) -> None:
    tasks = read_tasks(config, tmp_path / "data")
    first, value = tasks["train-0"], ToolCall("get_counter_value", {})
    played = [
        (first, [add(1), add(2), value, finish("6")]),
        (first, [add(1), value, finish("4")]),
        (first, [add("one"), ToolCall("zap", {}), add(3)]),
        (tasks["test-0"], [add(9), finish("15")]),
    ]
    with closing(open_environment("nemo_gym", config)) as environment:
        episodes = play_back(played, environment, limits=config.tools)
    assert [episode.solved for episode in episodes] == [1.0, 0.0, 1.0, 1.0]
    assert json.loads(episodes[0].steps[2].observation) == {"count": 6}
    assert json.loads(episodes[1].steps[1].observation) == {"count": 4}
    statuses = [step.status for step in episodes[2].steps]
    assert statuses[:3] == [StepStatus.INVALID_ARGUMENTS, StepStatus.UNKNOWN_TOOL, StepStatus.OK]


def test_a_call_that_the_server_refuses_is_a_failed_step(config: Config, url: str) -> None:
    row = make_row(0, 1, "add")
    loose = {"type": "object", "properties": {"count": {}}}
    row["responses_create_params"]["tools"] = [{**TOOLS[0], "parameters": loose}, {**TOOLS[1], "name": "missing"}]
    query = Query("q", "train", "nemo_gym", "add", (), Reference(environment={"row": row}))
    with closing(LimitedEnvironment(NemoGymEnvironment(url), config.tools).reset(query)) as session:
        assert session.call(add("many")).status is StepStatus.INVALID_ARGUMENTS
        assert session.call(ToolCall("missing", {})).status is StepStatus.UNKNOWN_TOOL
        assert session.solved(None) == 0.0


def test_a_reward_outside_the_range_and_a_server_that_is_away_are_told_apart(url: str, config: Config) -> None:
    query = Query("q", "train", "nemo_gym", "add", (), Reference(environment={"row": make_row(1, 1, "nothing")}))
    narrow = NemoGymEnvironment(url, reward_range=[0.0, 0.5])
    with (
        closing(LimitedEnvironment(narrow, config.tools).reset(query)) as session,
        pytest.raises(VerdictError, match=r"the reward 1 lies outside \[0, 0.5\]: set tools.settings.reward_range"),
    ):
        session.solved("1")
    away = NemoGymEnvironment("http://127.0.0.1:9", timeout=2.0)
    limits = config.tools.model_copy(update={"retries": 0})
    with closing(LimitedEnvironment(away, limits).reset(query)) as session:
        assert "the tool cannot be reached" in session.call(add(1)).observation
    with pytest.raises(ValueError, match="expected a row with responses_create_params, got 'None'"):
        narrow.reset(Query("q", "train", "nemo_gym", "add", ()))


def test_every_call_says_that_the_session_could_not_be_seeded() -> None:
    app = Starlette(routes=[Route("/seed_session", lambda _: JSONResponse(["seeded"]), methods=["POST"])])
    query = Query("q", "train", "nemo_gym", "add", (), Reference(environment={"row": make_row(0, 1, "add")}))
    with serve_app(app) as address, closing(NemoGymEnvironment(address).reset(query)) as session:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="answered something else than an object"):
                session.call(add(1))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            JSONResponse({"detail": "no seed"}, status_code=500),
            "RuntimeError: the server refuses to seed a session: 500",
        ),
        (JSONResponse(["seeded"]), "RuntimeError: /seed_session answered something else than an object"),
        (JSONResponse({"mcp": {"url_path": 7}}), "AttributeError"),
        (JSONResponse({"mcp": {"url_path": "mcp", "headers": ["key"]}}), "TypeError"),
    ],
)
def test_a_server_that_gives_no_session_for_the_tools_is_refused_with_its_field(
    tmp_path: Path, answer: JSONResponse, problem: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"responses_create_params": {"input": "add"}}\n', encoding="utf-8")
    app = Starlette(routes=[Route("/seed_session", lambda _: answer, methods=["POST"])])
    with serve_app(app) as address, pytest.raises(ConfigError, match="does not list its tools") as raised:
        list(NemoGymEnvironment(address, [str(tmp_path / "rows.jsonl")]).tasks())
    assert str(raised.value).startswith(f"tools.settings.url: '{address}' ") and problem in str(raised.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "http://127.0.0.1:port", ""])
def test_an_address_without_a_server_is_refused_with_its_field(tmp_path: Path, url: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"responses_create_params": {"input": "add"}}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^tools\.settings\.url: "):
        list(NemoGymEnvironment(url, [str(tmp_path / "rows.jsonl")]).tasks())


def test_what_is_wrong_with_the_settings_is_said(config: Config, tmp_path: Path) -> None:
    def with_settings(**settings: Any) -> Config:
        tools = config.tools.model_copy(update={"settings": {**config.tools.settings, **settings}})
        return config.model_copy(update={"tools": tools})

    with pytest.raises(ConfigError, match=r"reward_range: expected \[low, high\] with low below high, got \[1, 0\]"):
        open_environment("nemo_gym", with_settings(reward_range=[1, 0]))
    for wrong in ([0, None, 1], [0, float("inf")], [float("-inf"), 1], [float("nan"), 1]):
        with pytest.raises(ConfigError, match=rf"reward_range: expected .*, got {re.escape(str(wrong))}"):
            open_environment("nemo_gym", with_settings(reward_range=wrong))
    with pytest.raises(ConfigError, match=r"datasets: expected a list of files, .* got 'train\.jsonl'"):
        open_environment("nemo_gym", with_settings(datasets="train.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"responses_create_params": {}}\n', encoding="utf-8")
    for name, problem in {"bad.jsonl": "row 1: expected a prompt", "none.jsonl": "cannot be read as JSONL"}.items():
        with pytest.raises((ConfigError, IngestError), match=problem):
            read_tasks(with_settings(datasets=[str(tmp_path / name)]), tmp_path / "data")


@pytest.mark.skipif(not PYTHON, reason="NEMO_GYM_PYTHON names no interpreter with nemo-gym")
def test_a_server_that_hands_out_an_mcp_session_is_called_over_mcp(tmp_path: Path) -> None:
    row = {
        "responses_create_params": {"input": "How is the weather in Oslo?", "tools": []},
        "verifier_metadata": {"expected_city": "Oslo"},
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with start_server([PYTHON, str(HERE / "nemo_gym_server.py"), WEATHER]) as url:
        settings = {"url": url, "datasets": [str(tmp_path / "rows.jsonl")]}
        data = {"source": "environment", "environment": "nemo_gym"}
        config = Config.model_validate({"data": data, "tools": {"settings": settings}})
        (query,) = read_tasks(config, tmp_path / "data").values()
        assert [tool["function"]["name"] for tool in query.tools] == ["get_weather", FINISH]
        right, wrong = "The weather in Oslo is sunny and 72 F.", "It snows."
        calls = [ToolCall("get_weather", {"city": "Oslo"})]
        with closing(open_environment("nemo_gym", config)) as environment:
            played = [(query, [*calls, finish(answer)]) for answer in (right, wrong)]
            episodes = play_back(played, environment, limits=config.tools)
    assert [episode.steps[0].observation for episode in episodes] == [right, right]
    assert [episode.solved for episode in episodes] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("[1]", "row 1: expected an object, got \\[1\\]"),
        ('{"responses_create_params": {"input": ["words"]}}', "row 1: expected a prompt"),
        ('{"responses_create_params": {"input": "add", "tools": {"name": "add"}}}', "row 1: expected a list of tools"),
        ('{"responses_create_params": {"input": "add", "tools": ["add"]}}', "row 1: expected a list of tools"),
        (
            '{"responses_create_params": {"input": "add", "tools": [{"name": "add", "parameters": ["count"]}]}}',
            "row 1: expected an object as parameters of add",
        ),
    ],
)
def test_a_row_in_another_form_is_refused_with_its_number(tmp_path: Path, row: str, problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        list(NemoGymEnvironment("http://127.0.0.1:9", [str(file)]).tasks())


@pytest.mark.parametrize("reward", ["high", None, [1], float("nan"), float("inf"), 10**400])
def test_a_reward_that_is_no_number_gives_no_verdict(reward: Any) -> None:
    with pytest.raises(VerdictError, match="the reward is no number"):
        RewardRange().verdict(reward)
    assert RewardRange(0.0, 2.0).verdict("0.5") == 0.25
