"""Registries in folders and on a real S3 server, models to publish, and programs that use them at the same time."""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from servers import start_server

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
    with (
        pytest.MonkeyPatch.context() as patch,
        start_server([sys.executable, "-c", SERVER], quiet=True) as url,
    ):
        for name, value in {**ACCESS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        store = fsspec.get_filesystem_class("s3")
        store.clear_instance_cache()
        try:
            for bucket in ("registries", "careless"):
                store().mkdir(bucket)
            yield "s3://registries"
        finally:
            store.clear_instance_cache()


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
