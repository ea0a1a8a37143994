"""Our environments behind OpenEnv's protocol: by plain messages, our own adapter, and a client of the real package.

The real package cannot be installed beside ours: OPENENV_PYTHON names an interpreter that has it
(make test-environments).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("websockets", reason="pip install 'steptool[environments]'")

from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from steptool.config import Config, load_config
from steptool.data.ingest import ingest
from steptool.environments.base import open_environment
from steptool.policies.serve_environment import EpisodeConnection, ServedEnvironment
from steptool.policies.text_policies import list_reference_calls, play_back
from steptool.records import StepStatus, StopReason, ToolCall
from steptool.records.episodes import read_queries

ROOT = Path(__file__).parents[2]
CLIENT = Path(__file__).with_name("openenv_client.py")
FINISH = {"return_type": "give_answer", "final_answer": "13"}


def start_server(*options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "steptool.cli", "serve-env", "configs/functions.yaml", "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment})


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(line.split(" at ")[1].split()[0] for line in process.stdout if line.startswith("serving"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start_server() as process:
        yield read_address(process)
        process.terminate()


@pytest.fixture
def socket(url: str) -> Iterator[ClientConnection]:
    with connect(f"{url.replace('http', 'ws')}/ws") as connection:
        yield connection


def ask(socket: ClientConnection, kind: str, data: Any = None) -> dict[str, Any]:
    socket.send(json.dumps({"type": kind} if data is None else {"type": kind, "data": data}))
    answer: dict[str, Any] = json.loads(socket.recv(timeout=30))
    return answer


def call(socket: ClientConnection, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = ask(socket, "step", {"type": "call_tool", "tool_name": tool, "arguments": arguments})
    data: dict[str, Any] = answer["data"]
    return data


def test_an_episode_ends_with_finish_and_its_reward_is_the_verdict(socket: ClientConnection) -> None:
    reply = ask(socket, "reset", {"split": "train", "index": 0})["data"]
    assert reply["observation"]["instruction"] == "How many pieces of the kettle are in stock?"
    names = [tool["name"] for tool in ask(socket, "step", {"type": "list_tools"})["data"]["observation"]["tools"]]
    assert names == ["items", "count", "price", "order", "Finish"]
    count = call(socket, "count", item="kettle")
    assert (count["observation"], count["reward"], count["done"]) == (
        {"tool_name": "count", "result": "13"},
        None,
        False,
    )
    assert ask(socket, "state")["data"] == {"episode_id": "shop-01", "step_count": 1}
    end = call(socket, "Finish", **FINISH)
    assert (end["reward"], end["done"], end["metadata"]) == (1.0, True, {"status": "finish", "stop_reason": "finished"})
    late = ask(socket, "step", {"type": "call_tool", "tool_name": "items", "arguments": {}})
    assert late == {
        "type": "error",
        "data": {"code": "EXECUTION_ERROR", "message": "no episode is running: send reset first"},
    }


def test_a_failed_call_names_what_failed(socket: ClientConnection) -> None:
    ask(socket, "reset", {"task_id": "shop-01"})
    kinds = {"zap": "tool_not_found", "price": "invalid_args", "count": "execution_error"}
    for tool, kind in kinds.items():
        error = call(socket, tool, **({"item": "moon"} if tool == "count" else {}))["observation"]["error"]
        assert error["error_type"] == kind and "error" in error["message"]
    wrong = call(socket, "Finish", return_type="give_answer", final_answer="12")
    assert (wrong["reward"], wrong["done"]) == (0.0, True)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('{"type": "dance"}', "UNKNOWN_TYPE"),
        ("no JSON", "INVALID_JSON"),
        ('{"type": "reset", "data": []x}', "INVALID_JSON"),
        ('{"type": "reset", "data": {"task_id": "none"}}', "EXECUTION_ERROR"),
        ('{"type": "reset", "data": {"split": "train", "index": 99}}', "EXECUTION_ERROR"),
        ('{"type": "reset", "data": {"split": "train", "index": "x"}}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": {"type": "call_tool", "tool_name": "items"}}', "EXECUTION_ERROR"),
        ('{"type": ["reset"]}', "INVALID_JSON"),
        ('{"type": "reset", "data": {"split": ["train"]}}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"seed": "x"}}', "VALIDATION_ERROR"),
        ("[" * 100_000, "INVALID_JSON"),
        (b"\xff\x00", "INVALID_JSON"),
        (b'{"type": "dance"}', "UNKNOWN_TYPE"),
    ],
)
def test_a_message_that_cannot_be_answered_gets_a_code(
    socket: ClientConnection, message: str | bytes, code: str
) -> None:
    socket.send(message)
    answer = json.loads(socket.recv(timeout=30))
    assert (answer["type"], answer["data"]["code"]) == ("error", code)
    assert ask(socket, "reset", {"seed": 7})["data"]["observation"]["task_id"] == "shop-02"  # 7 modulo 6 tasks


def test_tasks_are_listed_by_split(url: str) -> None:
    assert httpx2.get(f"{url}/health").json() == {"status": "healthy"}
    assert httpx2.get(f"{url}/list_environments").json() == ["functions"]
    splits = httpx2.get(f"{url}/functions/splits").json()
    assert {"name": "train", "type": "train"} in splits and {"name": "heldout", "type": "test"} in splits
    listed = httpx2.post(f"{url}/functions/tasks", json={"split": "validation"}).json()["tasks"]
    assert [task["id"] for task in listed] == ["shop-07", "shop-08", "shop-09"]
    assert httpx2.post(f"{url}/functions/num_tasks", json={"split": "train"}).json() == {"num_tasks": 6}
    assert httpx2.get(f"{url}/other/splits").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"split": "train", "index": 9}', 400, "index: expected a number below 6, got 9"),
        (b'{"split": "train", "index": -1}', 400, "index: "),
        (b'{"split": ["train"]}', 400, "split: "),
        (b'{"split": "exam"}', 400, "split: expected one of train"),
        (b"[1]", 400, "an object in JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'"' + b"x" * (5 << 20) + b'"', 413, "4 MB"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(url: str, body: bytes, status: int, words: str) -> None:
    answer = httpx2.post(f"{url}/functions/task", content=body)
    assert answer.status_code == status and words in answer.json()["detail"]


def test_tasks_have_finish_also_where_training_ends_with_text(tmp_path: Path) -> None:
    """The protocol has no turns of text, so that without Finish no client could end an episode."""
    config = load_config(ROOT / "configs/functions.yaml", ["rollout.finish=text"])
    queries = read_queries(ingest(config, tmp_path, for_training=False).queries_path)
    assert "Finish" not in [tool["function"]["name"] for tool in queries[0].tools]
    with closing(open_environment("functions", config)) as environment:
        connection = EpisodeConnection(ServedEnvironment(environment, queries, config.tools, 10))
        with closing(connection):
            reply = connection.answer('{"type": "reset", "data": {"task_id": "shop-01"}}')
            end = connection.answer(json.dumps({"type": "step", "data": {"tool_name": "Finish", "arguments": FINISH}}))
    assert reply and reply["data"]["observation"]["tools"][-1]["name"] == "Finish"
    assert end and (end["data"]["reward"], end["data"]["done"]) == (1.0, True)


def test_our_own_adapter_plays_what_we_serve(url: str, tmp_path: Path) -> None:
    """The way out and the way in: tasks, tools, failures, verdicts and endings arrive as they were."""
    data = {"source": "environment", "environment": "openenv"}
    config = Config.model_validate({"data": data, "tools": {"settings": {"url": url}}})
    served = ingest(config, tmp_path / "served", for_training=False)
    own = Config.model_validate(
        {
            "data": {
                "source": "jsonl",
                "environment": "functions",
                "paths": [str(ROOT / "examples/functions/tasks.jsonl")],
            },
            "tools": {"functions": f"{ROOT}/examples/functions/tools.py:Shop"},
        }
    )
    original = read_queries(ingest(own, tmp_path / "own", for_training=False).queries_path)
    queries = {query.query_id: query for query in read_queries(served.queries_path)}
    assert {q.query_id: (q.split, q.instruction) for q in original} == {
        name: (query.split, query.instruction) for name, query in queries.items()
    }
    played = [(queries[query.query_id], list_reference_calls(query)) for query in original]
    played.append(
        (queries["shop-02"], [ToolCall("zap", {}), ToolCall("price", {}), *list_reference_calls(original[1])])
    )
    played.append((queries["shop-02"], [ToolCall("items", {})]))
    with closing(open_environment("openenv", config)) as environment:
        episodes = play_back(played, environment, limits=config.tools)
    assert [episode.solved for episode in episodes] == [*[1.0] * (len(original) + 1), 0.0]
    assert {episode.stop_reason for episode in episodes[:-1]} == {StopReason.FINISHED}
    statuses = [step.status for step in episodes[-2].steps]
    assert statuses[:2] == [StepStatus.UNKNOWN_TOOL, StepStatus.INVALID_ARGUMENTS]


def test_the_user_goes_on_after_an_answer(tmp_path: Path) -> None:
    folder = ROOT / "examples" / "conversation"
    config = Config.model_validate(
        {
            "data": {"source": "jsonl", "environment": "functions", "paths": [str(folder / "tasks.jsonl")]},
            "tools": {"functions": f"{folder}/tools.py:Desk"},
        }
    )
    queries = read_queries(ingest(config, tmp_path, for_training=False).queries_path)
    with closing(open_environment("functions", config)) as environment:
        connection = EpisodeConnection(ServedEnvironment(environment, queries, config.tools, 10))
        with closing(connection):
            connection.answer(json.dumps({"type": "reset", "data": {"task_id": "show-day"}}))
            finish = {"tool_name": "Finish", "arguments": {**FINISH, "final_answer": "On the 9th."}}
            end = connection.answer(json.dumps({"type": "step", "data": finish}))
            assert end and (end["data"]["reward"], end["data"]["done"]) == (1.0, True)
            connection.answer(json.dumps({"type": "reset", "data": {"task_id": "change-flexible"}}))
            answer = connection.answer(json.dumps({"type": "step", "data": finish}))
    assert answer and (answer["data"]["observation"]["result"], answer["data"]["done"]) == ("It is K7.", False)


def test_a_key_is_asked_for_and_an_open_address_is_refused_without_one() -> None:
    with start_server(STEPTOOL_API_KEY="sesame") as process:
        address = read_address(process).replace("http", "ws") + "/ws"
        with pytest.raises(InvalidStatus, match="403"):
            connect(address)
        with connect(address, additional_headers={"Authorization": "Bearer sesame"}) as socket:
            assert ask(socket, "reset")["type"] == "observation"
        process.terminate()
    command = [sys.executable, "-m", "steptool.cli", "serve-env", "configs/functions.yaml", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert refused.returncode == 2 and "set a key in STEPTOOL_API_KEY" in refused.stderr


def test_a_client_for_whom_there_is_no_room_is_told_so() -> None:
    overrides = ["--set", "tools.concurrency=1"]
    with start_server(*overrides) as process:
        address = read_address(process).replace("http", "ws") + "/ws"
        with connect(address) as socket:
            assert ask(socket, "reset")["type"] == "observation"
            with connect(address) as second:
                assert json.loads(second.recv(timeout=30))["data"]["code"] == "CAPACITY_REACHED"
        process.terminate()


@pytest.mark.skipif("OPENENV_PYTHON" not in os.environ, reason="OPENENV_PYTHON names no interpreter with openenv")
def test_a_client_of_the_real_package_plays_and_gets_our_verdict(url: str) -> None:
    command = [os.environ["OPENENV_PYTHON"], str(CLIENT), url]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["tools"] == {
        "names": ["items", "count", "price", "order", "Finish"],
        "count": "13",
        "problem": "execution_error",
        "reward": 1.0,
        "done": True,
    }
    assert report["given_up"] == {
        "shown": "How many pieces of the kettle are in stock?",
        "reward": 0.0,
        "done": True,
        "state": {"episode_id": "shop-01", "step_count": 1},
    }
    assert [task["id"] for task in report["tasks"]] == [f"shop-0{n}" for n in range(1, 7)]
