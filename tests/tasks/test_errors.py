"""A transient error is tried again and every other error ends the run; shown on real errors of real connections."""

import errno
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from flytekit.bin.entrypoint import setup_execution
from flytekit.core.context_manager import FlyteContextManager
from flytekit.exceptions.user import FlyteRecoverableException

from steptool.chat.endpoint import Endpoint
from steptool.config import EndpointConfig, load_config
from steptool.config.base import ConfigError
from steptool.storage.transfer import fetch
from tasks.runtime.profile import StageName, StageProfile
from tasks.runtime.stage import StageFailed, _add_error_handling, classify_errors, is_transient

ROOT = Path(__file__).parents[2]
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class _Busy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", str(len(BUSY)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(BUSY)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """store(address): S3 is there from now on; one attempt for each request."""
    kind = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(kind, "retries", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def use(address: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        kind.clear_instance_cache()

    yield use
    kind.clear_instance_cache()


@pytest.fixture
def nobody() -> str:
    """An address on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def raise_in_stage(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as excinfo:
        work()
    return excinfo.value


def test_a_refused_connection_is_transient(nobody: str) -> None:
    assert is_transient(raise_in_stage(lambda: socket.create_connection(("127.0.0.1", int(nobody.rpartition(":")[2])))))


def test_a_store_that_is_away_is_transient(nobody: str, store: Callable[[str], None], tmp_path: Path) -> None:
    store(nobody)
    assert is_transient(raise_in_stage(lambda: fetch("s3://bucket/file", tmp_path)))


def test_other_stores_and_lost_processes_of_a_training() -> None:
    from azure.core.exceptions import ResourceNotFoundError, ServiceRequestError
    from gcsfs.retry import HttpError

    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"
    for error in (HttpError({"code": 503}), ServiceRequestError("away"), RuntimeError(gloo)):
        assert is_transient(error)
    for error in (HttpError({"code": 404}), ResourceNotFoundError("gone"), RuntimeError("shapes do not fit")):
        assert not is_transient(error)


def test_a_store_that_is_busy_is_transient(store: Callable[[str], None], tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        store(f"http://127.0.0.1:{server.server_port}")
        error = raise_in_stage(lambda: fetch("s3://bucket/file", tmp_path))
        server.shutdown()
    assert is_transient(error)


def test_a_file_that_a_store_does_not_have_will_not_come(bucket: str, tmp_path: Path) -> None:
    assert not is_transient(raise_in_stage(lambda: fetch(f"{bucket}/none", tmp_path)))


def test_a_lost_download_of_an_input_may_pass_and_one_of_nothing_will_not(
    nobody: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flyte wraps the first kind without naming a cause."""
    access = FlyteContextManager.current_context().file_access
    assert not is_transient(raise_in_stage(lambda: access.get_data(f"{bucket}/none", str(tmp_path / "none"))))
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert is_transient(raise_in_stage(lambda: access.get_data("s3://bucket/file", str(tmp_path / "file"))))


@pytest.mark.parametrize(("status", "passes"), [(503, True), (429, True), (401, False), (404, False), (400, False)])
def test_an_endpoint_that_stays_away_may_pass_and_one_that_refuses_will_not(
    chat: SimpleNamespace, status: int, passes: bool
) -> None:
    server = chat.serve(lambda *_: chat.Answer(status=status, body='{"error": {"message": "no"}}'))
    endpoint = Endpoint(EndpointConfig(base_url=server.url, model="m", retries=0, timeout=5.0))
    try:
        error = raise_in_stage(lambda: endpoint.chat([{"role": "user", "content": "hello"}]))
    finally:
        endpoint.close()
    assert is_transient(error) is passes


@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.EIO, True), (errno.ESTALE, True), (errno.EHOSTUNREACH, True), (errno.ENOSPC, False), (errno.ENOENT, False)],
)
def test_a_lost_disk_or_network_may_pass_and_a_full_disk_will_not(number: int, passes: bool) -> None:
    assert is_transient(OSError(number, "")) is passes


def test_the_cause_counts_and_not_what_was_made_of_it() -> None:
    outer = ValueError("the model cannot be loaded")
    outer.__cause__ = OSError("wrapped")
    outer.__cause__.__cause__ = ConnectionResetError("peer")
    assert is_transient(outer) and is_transient(ExceptionGroup("several", [KeyError("x"), outer]))
    beside = ValueError("wrong")
    beside.__context__ = ConnectionResetError("handled and forgotten")
    assert not is_transient(beside)


def test_a_permanent_error_says_stage_cause_and_remedy_in_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.yaml").write_text("ppo: {rounds: many}\nrewards: {alpha: -1}\n")
    with pytest.raises(StageFailed) as excinfo, classify_errors("ingest", 3):
        load_config(tmp_path / "mine.yaml")
    line = capsys.readouterr().out.removesuffix("\n")
    assert line.startswith(f"ingest: {tmp_path}/mine.yaml: the configuration was refused: field 'rewards.alpha': input")
    assert "'ppo.rounds'" in line and line.endswith("; it is not tried again")
    assert "\n" not in line and str(excinfo.value) == line and isinstance(excinfo.value.__cause__, ConfigError)


def test_an_error_that_may_pass_reaches_flyte_as_one_to_be_tried_again(capsys: Any) -> None:
    with pytest.raises(FlyteRecoverableException) as excinfo, classify_errors("rollout", 2):
        raise ConnectionResetError("the peer is gone")
    line = capsys.readouterr().out.strip()
    assert (
        line.startswith("rollout: ConnectionResetError: the peer is gone; Flyte tries it again") and " 2 times" in line
    )
    assert excinfo.value.args == (line,)


def test_an_error_of_an_inner_stage_is_told_once(capsys: Any) -> None:
    with pytest.raises(StageFailed, match=r"^ppo: "), classify_errors("rounds", 0), classify_errors("ppo", 0):
        raise KeyError("x")
    assert capsys.readouterr().out.count("\n") == 1


def test_code_that_exits_fails_the_stage_whatever_its_exit_code() -> None:
    message = r"^ingest: the code of the run called sys\.exit\(0\); it is not tried again"
    with pytest.raises(StageFailed, match=message), classify_errors("ingest", 3):
        sys.exit(0)


def test_a_local_run_shows_the_cause_alone_and_keeps_the_stack_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {source: jsonl, paths: [/nowhere/tasks.jsonl]}\n")
    program = [str(Path(sys.executable).with_name("pyflyte")), "run", "workflows/ingest.py", "ingest"]
    command = [*program, "--config", str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "out")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    message = " ".join((process.stdout + process.stderr).replace("│", " ").split())
    assert process.returncode == 1 and "Traceback" not in message and len(message.split()) < 60
    assert "fingerprint: data.paths: '/nowhere/tasks.jsonl' does not exist" in message
    (stack,) = re.findall(r"\(stack: (.*?)\)", message)
    stack_file = Path(stack.replace(" ", ""))
    assert "Traceback" in stack_file.read_text() and "IngestError" in stack_file.read_text()
    stack_file.unlink()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_pod_that_does_not_see_its_gpus_ends_at_once(tmp_path: Path) -> None:
    """It would train on the processor until its time is over."""
    train = {gpus: _add_error_handling(StageName.PPO, StageProfile(gpus=gpus), lambda: "trained") for gpus in (0, 2)}
    with setup_execution(str(tmp_path)):
        assert train[0]() == "trained"
        with pytest.raises(StageFailed, match=r"gives GPUs to stages\.ppo, and torch finds none.*not tried again"):
            train[2]()
