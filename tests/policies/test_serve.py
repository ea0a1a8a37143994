"""A model behind our own server, in a process of its own: the same episodes as in this one, and what it refuses."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from steptool.chat.messages import FINISH_SCHEMA
from steptool.config import Config, EndpointConfig, EvaluatedPolicy, load_config
from steptool.data.ingest import ingest
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_desk_queries
from steptool.models.load import EMBEDDED
from steptool.models.serving import read_serving, write_serving
from steptool.pipeline.episodes import evaluate
from steptool.pipeline.preparation import prepare
from steptool.policies.catalog import open_policy
from steptool.policies.serve import AbandonedError, ChatRequest, complete_schema, load_served
from steptool.records import FINISH, Query, Step, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from steptool.registry import Registry
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import roll_out
from steptool.training.warm_start import warm_start

CONFIG = Config.model_validate({"rollout": {"temperature": 0.5}, "data": {"heldout_queries": 120}})
QUERIES = [query for query in draw_desk_queries(CONFIG) if query.split == "heldout"][60:70]
"""Short tasks, of which the base solves some and fails others."""

QUESTION: list[Any] = [{"role": "user", "content": "?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base as a run publishes its model."""
    target = tmp_path_factory.mktemp("models") / "desk-model"
    shutil.copytree(EMBEDDED, target)
    write_serving(target, CONFIG)
    return target


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server of this model, in a process of its own."""
    command = [sys.executable, "-m", "steptool.cli", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serve(folder) as address:
        yield address


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def play(
    policy: EvaluatedPolicy, config: Config = CONFIG, queries: Sequence[Query] = tuple(QUERIES)
) -> list[Trajectory]:
    with open_policy(policy, config) as opened:
        played = roll_out(opened, queries, DeskEnvironment(), decoding=Decoding.GREEDY)
    return [episode.trajectory for episode in played]


def test_a_served_model_plays_the_episodes_that_it_plays_here(folder: Path, address: str) -> None:
    endpoint = EndpointConfig(base_url=address, model="desk-model")
    far = play(EvaluatedPolicy(name="far", kind="endpoint", endpoint=endpoint, model=str(folder)))
    here = play(EvaluatedPolicy(name="here", model=str(folder)))
    assert [t.solved for t in far] == [t.solved for t in here] and 0 < sum(t.solved or 0.0 for t in here) < len(here)
    assert [readable_steps(t) for t in far] == [readable_steps(t) for t in here]
    assert sum(len(readable_steps(t)) == len(t.steps) for t in here) >= 5


def test_a_model_that_ends_with_text_is_served_so(tmp_path: Path) -> None:
    config = load_config("configs/laptop.yaml", ["rollout.finish=text", "rollout.max_steps=4"])
    model = tmp_path / "text-model"
    shutil.copytree(EMBEDDED, model)
    write_serving(model, config)
    here = play(EvaluatedPolicy(name="here", model=str(model)), config, QUERIES[:2])
    with serve(model) as address:
        endpoint = EndpointConfig(base_url=address, model="text-model")
        served = EvaluatedPolicy(name="far", kind="endpoint", endpoint=endpoint, model=str(model))
        far = play(served, config, QUERIES[:2])
    assert [readable_steps(t) for t in far] == [readable_steps(t) for t in here]
    assert "Finish" not in {tool["function"]["name"] for tool in read_serving(model).offer([])}
    assert any(readable_steps(t) for t in here)


def train(config: Config, folder: Path) -> tuple[Path, list[Query]]:
    """Fine-tune a tiny model on the demonstrations of a configuration. Returns its folder and the tasks."""
    torch.set_num_threads(1)
    data = ingest(config, folder / "data")
    queries, demonstrations = read_queries(data.queries_path), read_records(data.demonstrations_path, Trajectory)
    prepared = prepare(queries, demonstrations, config, folder / "prepared")
    model = folder / "model"
    warm_start(prepared.model, prepared.lessons.encoded, config.warm_start, config.policy, config.seed, model)
    write_serving(model, config)
    return model, queries


@pytest.mark.parametrize("finish", ["tool", pytest.param("text", marks=pytest.mark.slow)])
def test_a_model_trained_in_react_has_the_verdicts_behind_an_endpoint_that_it_has_here(
    tmp_path: Path, finish: str
) -> None:
    settings = ["policy.chat_format=react", f"rollout.finish={finish}", "warm_start={steps: 160, batch_size: 3}"]
    config = load_config("configs/functions.yaml", [*settings, "warm_start.learning_rate=3.0e-3"])
    model, queries = train(config, tmp_path)
    here = evaluate(EvaluatedPolicy(name="here", model=str(model)), queries, config)
    with serve(model) as address:
        endpoint = EndpointConfig(base_url=address, model="model", retries=0)
        far = evaluate(
            EvaluatedPolicy(name="far", kind="endpoint", endpoint=endpoint, model=str(model)), queries, config
        )
    assert 0 < sum(verdict or 0.0 for verdict in here.greedy_verdicts) < len(queries)
    for one, other in zip(here.greedy, far.greedy, strict=True):
        steps = readable_steps(one)
        assert other.steps[: len(steps)] == steps
        if len(steps) == len(one.steps):  # a client takes a turn without `Final Answer:` for the answer
            assert other.solved == one.solved


def readable_steps(trajectory: Trajectory) -> list[Step]:
    """The steps before the first one without a call. The API has no answer of a tool to such a turn: the user tells."""
    return list(takewhile(lambda step: step.call, trajectory.steps))


def test_a_client_without_finish_gets_the_answer_as_text(client: openai.OpenAI, folder: Path) -> None:
    (solved, *_) = [t for t in play(EvaluatedPolicy(name="here", model=str(folder))) if t.solved]
    tools = next(query.tools for query in QUERIES if query.query_id == solved.query_id)

    def answer(messages: list[Any], offered: list[Any]) -> dict[str, Any]:
        reply = client.chat.completions.create(model="desk-model", messages=messages, tools=offered, temperature=0)
        return reply.choices[0].message.model_dump(exclude_none=True)

    without = answer(solved.messages[:-1], [tool for tool in tools if tool["function"]["name"] != FINISH])
    assert without == {"role": "assistant", "content": solved.final_answer}
    (call,) = answer(solved.messages[:-1], list(tools))["tool_calls"]
    assert call["function"]["name"] == FINISH
    assert json.loads(call["function"]["arguments"])["final_answer"] == solved.final_answer


def test_a_seed_decides_what_is_sampled_and_usage_counts_tokens(client: openai.OpenAI, folder: Path) -> None:
    query = QUERIES[0]
    request: dict[str, Any] = {
        "model": "desk-model",
        "messages": [{"role": "user", "content": [{"type": "text", "text": query.instruction}]}],
        "tools": list(query.tools),
        "max_tokens": 5,
    }
    first, second = (client.chat.completions.create(**request, seed=7, temperature=1.5) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content
    others = [client.chat.completions.create(**request, seed=n, temperature=1.5) for n in range(6)]
    assert len({other.choices[0].message.content for other in others}) > 1
    assert first.usage and first.usage.completion_tokens == 5
    assert first.usage.total_tokens == first.usage.prompt_tokens + 5 and first.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(**request, temperature=0, stream=True))
    whole = client.chat.completions.create(**request, temperature=0)
    assert [chunk.choices[0].delta.content for chunk in chunks] == [whole.choices[0].message.content]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "another"}, 404, "this server has 'desk-model'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "critic", "content": "?"}]}, 400, "expected a role among"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "needs text"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}, 400, "assistant"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context length is 768"),
        ({"messages": [{"role": "user", "content": "x" * 3_900_000}]}, 400, "3,900,000 characters"),
        ({"messages": [{"role": "user", "content": "x" * (5 << 20)}]}, 413, "4 MB"),
        ({"tools": [{"type": "function"}]}, 400, "tools[0]"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 2}, 400, "n: this server takes 1 alone, got 2"),
        ({"stop": ["x"]}, 400, "stop: "),
        ({"top_p": 0.5}, 400, "top_p: "),
        ({"response_format": {"type": "json_object"}}, 400, "response_format: "),
        ({"functions": []}, 400, "functions: this server does not know this field"),
        ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": "look"}, *QUESTION]}, 400, "a list of calls"),
        ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": ["look"]}, *QUESTION]}, 400, "not an object"),
        ({"messages": [*QUESTION, {"role": "assistant", "function_call": {"name": "look"}}]}, 400, "function_call"),
        ({"messages": [{"role": "assistant", "content": "Hello"}, *QUESTION]}, 400, "begins with the system or the"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(
    address: str, change: dict[str, Any], status: int, words: str
) -> None:
    answer = httpx2.post(f"{address}/chat/completions", json={"model": "desk-model", "messages": QUESTION, **change})
    assert answer.status_code == status and words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "completions", 404), ("GET", "chat/completions", 405), ("GET", "models/another", 404)],
)
def test_every_refusal_is_an_error_in_openais_form(address: str, method: str, path: str, status: int) -> None:
    answer = httpx2.request(method, f"{address}/{path}")
    assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "change",
    [
        {"stream": None, "stop": None, "tool_choice": None, "tools": None},
        {"n": 1, "top_p": 1.0, "stop": [], "presence_penalty": 0.0, "logit_bias": {}, "user": "someone"},
        {"temperature": 1e-300},
        {"tools": [{"type": "function", "function": {"name": "look", "description": None, "parameters": None}}]},
    ],
)
def test_what_changes_nothing_is_taken(address: str, change: dict[str, Any]) -> None:
    body = {"model": "desk-model", "messages": QUESTION, "max_tokens": 2, **change}
    assert httpx2.post(f"{address}/chat/completions", json=body).status_code == 200


def test_a_request_of_nobody_is_not_computed(folder: Path) -> None:
    served, abandoned = load_served(folder, "desk-model"), threading.Event()
    abandoned.set()
    with pytest.raises(AbandonedError):
        served.complete(ChatRequest(model="desk-model", messages=QUESTION), abandoned)


def test_a_tool_needs_neither_description_nor_parameters(address: str) -> None:
    body = {
        "model": "desk-model",
        "messages": [{"role": "user", "content": "?"}],
        "max_tokens": 2,
        "tools": [{"type": "function", "function": {"name": "ring_the_bell"}}],
    }
    answer = httpx2.post(f"{address}/chat/completions", json=body)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 2


def test_a_schema_keeps_the_order_of_its_fields_that_the_model_has_learned() -> None:
    schemas = [FINISH_SCHEMA, {"type": "function", "function": {"name": "ring_the_bell"}}]
    full, completed = (json.dumps(complete_schema(schema)) for schema in schemas)
    assert full == json.dumps(FINISH_SCHEMA)
    assert completed == json.dumps(
        {
            "type": "function",
            "function": {
                "name": "ring_the_bell",
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    )


def test_models_and_health(client: openai.OpenAI, address: str) -> None:
    assert [model.id for model in client.models.list()] == ["desk-model"]
    assert client.models.retrieve("desk-model").id == "desk-model"
    assert httpx2.get(address.replace("/v1", "/health")).json() == {"status": "ok"}


def test_others_are_let_in_with_a_key_alone(folder: Path) -> None:
    command = [sys.executable, "-m", "steptool.cli", "serve", str(folder), "--host", "0.0.0.0"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and "set a key in STEPTOOL_API_KEY" in process.stderr


def test_the_folder_says_how_it_was_trained(folder: Path) -> None:
    serving = read_serving(folder)
    assert (serving.temperature, serving.max_tokens, serving.max_context) == (0.5, 48, 768)
    assert serving.finish_tool == FINISH_SCHEMA and serving.system == "" and serving.chat_format == "hermes"
    assert serving.vllm == ("--max-model-len", "768", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    decoding = json.loads((folder / "generation_config.json").read_text())
    assert (decoding["do_sample"], decoding["temperature"], decoding["top_k"]) == (True, 0.5, 0)
    assert (decoding["max_new_tokens"], decoding["eos_token_id"]) == (48, [6])


def test_a_model_from_elsewhere_is_published_with_what_it_needs_to_be_served(tmp_path: Path) -> None:
    model, place = tmp_path / "model", tmp_path / "registry"
    shutil.copytree(EMBEDDED, model)
    settings = ["--set", "rollout.finish=text", "--set", "rollout.max_new_tokens=32"]
    for arguments in (
        ["write-serving", model, "configs/laptop.yaml", *settings],
        ["registry", "publish", model, "--registry", place],
    ):
        subprocess.run([sys.executable, "-m", "steptool.cli", *map(str, arguments)], check=True, timeout=300)
    (version,) = Registry(place).versions()
    serving = read_serving(Registry(place).model_place(version.version_id))
    assert (serving.finish, serving.finish_tool, serving.max_tokens) == ("text", None, 32)
