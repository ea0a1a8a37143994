"""A cluster on loopback: a store, an image, and packages of the project and of toy workflows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pods.engine import Engine
from pods.image import Image, build
from pods.package import Registry, package, register
from pods.pod import Kill, Kubelet
from pods.store import Store, serve_store

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).parent / "toys"
IMAGES = {"cpu": "localhost/steptool:cpu", "gpu": "localhost/steptool:gpu"}


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with serve_store() as place:
        yield place


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return build(tmp_path_factory.mktemp("image"), {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """packaged(root, pkgs, **environment): a folder of protobufs and the tarball, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(root: Path, pkgs: str, **environment: str) -> Path:
        name = "-".join(["package", pkgs, *(re.sub(r"\W", "_", value) for value in environment.values())])
        with FileLock(shared / f"{name}.lock"):
            target = shared / name
            return target if target.exists() else package(root, pkgs, target, IMAGES, environment)

    return make


@pytest.fixture(scope="session")
def registered(packaged: Callable[..., Path], store: Store) -> Callable[..., Registry]:
    """registered(root, pkgs, **environment): the registry of what was packaged."""

    def make(root: Path, pkgs: str, **environment: str) -> Registry:
        return register(packaged(root, pkgs, **environment), store, "v1")

    return make


@pytest.fixture(scope="session")
def toys(registered: Callable[..., Registry]) -> Registry:
    return registered(TOYS, "flows")


@pytest.fixture(scope="session")
def project(registered: Callable[..., Registry]) -> Registry:
    """The project's tasks, workflows and launch plans as they are without a profile."""
    return registered(ROOT, "workflows")


@pytest.fixture(scope="session")
def engine(store: Store, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """engine(registry, kills, ...): what executes its launch plans."""
    scratch = tmp_path_factory.mktemp("pods")

    def make(registry: Registry, kills: tuple[Kill, ...] = (), **settings: Any) -> Engine:
        return Engine(registry, Kubelet(store, image, scratch, kills=kills), **settings)

    return make


@pytest.fixture
def pyflyte(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """pyflyte(address, folder, *arguments, **environment): the real command, with the project's flyte.config as it
    stands but for the address of Admin."""

    def call(address: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = tmp_path / "flyte.config"
        text = (ROOT / "flyte.config").read_text(encoding="utf-8")
        settings.write_text(re.sub(r"(?m)^url = .*", f"url = {address}", text), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("pyflyte")), "-c", str(settings), *arguments]
        variables = {**os.environ, "COLUMNS": "250", **environment}
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    return call
