"""Registries in folders and on a real S3 server, models to publish, and programs that use them at the same time."""

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

# One request at a time: moto looks whether an object is there and writes it later, which S3 does in one act. Objects of
# the bucket "careless" are overwritten whatever the request's If-None-Match says, as servers do that do not know it.
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)

def serve(environ, start_response):
    if environ["PATH_INFO"].startswith("/careless/"):
        environ.pop("HTTP_IF_NONE_MATCH", None)
    return moto(environ, start_response)

make_server("127.0.0.1", int(sys.argv[1]), serve).serve_forever()
"""
ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Url of a folder on an S3 server, which this process and its children reach; its bucket is empty at first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
    ):
        for name, value in {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        store = fsspec.get_filesystem_class("s3")
        store.clear_instance_cache()
        try:
            wait_for(port)
            for bucket in ("registries", "careless"):
                store().mkdir(bucket)
            yield "s3://registries"
        finally:
            store.clear_instance_cache()
            server.kill()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError("the S3 server took no connection")


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new registry may be: a folder, and a url."""
    if request.param == "folder":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`make_model(name, weights, **more)`: a folder with the files of a model, of the least content."""

    def make(name: str, weights: str = "weights", **more: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        files = {"config.json": "{}", "tokenizer_config.json": "{}", "model.safetensors": weights, **more}
        for file, text in files.items():
            (folder / file).write_text(text)
        return folder

    return make


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(program, *arguments)`: a Python program whose output can be read; it is gone after the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        with process:
            process.kill()
