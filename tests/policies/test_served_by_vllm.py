"""A model that was trained here, behind vLLM's own server, makes the calls that it makes here (make test-vllm)."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from steptool.config import Config, EndpointConfig, EvaluatedPolicy, FinishMode, load_config
from steptool.data.ingest import ingest
from steptool.models.load import make_tiny_model, train_tokenizer
from steptool.models.serving import read_serving, write_serving
from steptool.pipeline.episodes import evaluate
from steptool.pipeline.preparation import prepare
from steptool.records import Query, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from steptool.training.warm_start import iterate_texts, warm_start

pytest.importorskip("vllm")
ROOT = Path(__file__).parents[2]
_STEPS = 240


def configure(finish: FinishMode, base: Path) -> Config:
    """The example of Python functions, with a model that has heads of a size that vLLM takes on a CPU."""
    overrides = [f"rollout.finish={finish}", f"policy.base={base}", "policy.max_context=1024"]
    return load_config(ROOT / "configs/functions.yaml", overrides)


@pytest.fixture(scope="module", params=["tool", "text"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path, list[Query]]:
    """The configuration, the folder of the model that the pipeline's functions trained, and its tasks."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    config = configure(request.param, folder / "base")
    data = ingest(config, folder / "data")
    queries, recordings = read_queries(data.queries_path), read_records(data.demonstrations_path, Trajectory)
    tokenizer = train_tokenizer(iterate_texts(queries, recordings))
    tokenizer.save_pretrained(folder / "base")
    make_tiny_model(tokenizer, config.policy.max_context, seed=0, hidden=128).save_pretrained(folder / "base")
    prepared = prepare(queries, recordings, config, folder / "prepared")
    settings = config.warm_start.model_copy(update={"steps": _STEPS})
    model = folder / "model"
    warm_start(prepared.model, prepared.lessons.encoded, settings, config.policy, config.seed, model)
    write_serving(model, config)
    return config, model, queries


@contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """The address of vLLM's server, started with the flags of serving.json.

    `vllm serve` does the same, but it asks for the version of the package vllm, whose build for CPUs has another name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--model", str(model), "--served-model-name", "trained", "--host", "127.0.0.1", "--port", str(port)]
    on_cpu = ["--enforce-eager", "--dtype", "float32"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags, *on_cpu, *read_serving(model).vllm]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait_until_healthy(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text()[-2000:])


def test_vllm_serves_the_model_as_it_was_trained(
    trained: tuple[Config, Path, list[Query]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    config, model, queries = trained
    here = evaluate(EvaluatedPolicy(name="here", model=str(model)), queries, config)
    with serve(model, tmp_path / "vllm.log") as address:
        endpoint = EndpointConfig(base_url=address, model="trained", retries=0)
        served = EvaluatedPolicy(name="served", kind="endpoint", endpoint=endpoint, model=str(model))
        far = evaluate(served, queries, config)
    verdicts_here, verdicts_far = here.greedy_verdicts, far.greedy_verdicts
    print(config.rollout.finish, "here", verdicts_here, "served by vLLM", verdicts_far)
    assert sum(v or 0.0 for v in verdicts_here) >= 4  # the tasks that it has learned
    agreeing = sum(one == other for one, other in zip(verdicts_here, verdicts_far, strict=True))
    assert agreeing >= len(queries) - 1  # after a turn without a readable call, the two may part
