"""What a cluster adds to the work itself: pods on this machine against the same work without them.

Prints lines `name: OURS OTHER RATIO` in seconds. The first is of one pod around next to no work, the fastest of
several: a stage of ours, which imports its libraries and draws its page, against a task that multiplies two numbers, so
that all of its time is what a pod takes beyond its work. Then the smallest training: every node as its pod, two at a
time, against one process that runs them all; by wall time and by CPU time. Exits with 1 if a pod takes 3 s beyond its
work, or the training 5 minutes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from pods.engine import Engine, Execution
from pods.image import build
from pods.package import package, register
from pods.pod import Kubelet
from pods.store import Store, serve_store
from small_runs import SMALL_TRAINING
from steptool.config import Config

ROOT = Path(__file__).parents[1]
IMAGES = {"cpu": "localhost/steptool:cpu", "gpu": "localhost/steptool:gpu"}
REPEATS = 4
MOST_PER_POD, MOST_IN_ALL = 3.0, 300.0
"""Seconds."""


def main() -> int:
    """Print all lines; 0 if both bounds hold."""
    with tempfile.TemporaryDirectory() as folder, serve_store() as store:
        scratch = Path(folder)
        ours = engine(ROOT, "workflows", store, scratch)
        toys = engine(ROOT / "tests" / "cluster" / "toys", "flows", store, scratch)
        per_pod = around_no_work(ours, toys, store)
        in_all = training(ours, store, scratch)
    return int(per_pod > MOST_PER_POD or in_all > MOST_IN_ALL)


def engine(root: Path, pkgs: str, store: Store, scratch: Path) -> Engine:
    """What runs the workflows of a folder."""
    folder = package(root, pkgs, scratch / f"package-{pkgs}", IMAGES)
    image = build(scratch / f"image-{pkgs}", {"OMP_NUM_THREADS": "1"})
    return Engine(register(folder, store, "v1"), Kubelet(store, image, scratch))


def around_no_work(ours: Engine, toys: Engine, store: Store) -> float:
    """Seconds of a pod without work."""
    own, least = [], []
    config = Config.model_validate(SMALL_TRAINING)
    for number in range(REPEATS):
        inputs = {"config": config, "output": f"{store.root}/ingest{number}"}
        (pod,) = require_success(ours.execute("workflows.ingest.ingest", inputs)).ran("tasks.ingest.fingerprint")
        own.append(pod.seconds)
        (pod,) = require_success(toys.execute("flows.shapes.chosen", {"n": 11})).pods
        least.append(pod.seconds)
    show("one pod around no work", min(own), min(least))
    return min(least)


def training(ours: Engine, store: Store, scratch: Path) -> float:
    """Seconds of the smallest training in pods."""
    config = scratch / "smallest.json"
    config.write_text(Config.model_validate(SMALL_TRAINING).model_dump_json(), encoding="utf-8")
    program = [str(Path(sys.executable).with_name("pyflyte")), "run", "workflows/train.py", "train"]
    arguments = ["--config", str(config), "--output", str(scratch / "local")]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*program, *arguments], cwd=ROOT, env=variables, check=True, stdout=subprocess.DEVNULL)
    local, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    began = time.monotonic()
    inputs = {"config": Config.model_validate(SMALL_TRAINING), "output": f"{store.root}/trained"}
    run = require_success(ours.execute("workflows.train.train", inputs))
    seconds = time.monotonic() - began
    show(f"the smallest training in {len(run.pods)} pods", seconds, local)
    show("the same in CPU time", sum(pod.cpu_seconds for pod in run.pods), cpu)
    return seconds


def require_success(execution: Execution) -> Execution:
    """An execution that has ended well."""
    if execution.error:
        raise RuntimeError(execution.story())
    return execution


def show(name: str, ours: float, other: float) -> None:
    """Print a line of the result."""
    print(f"{name}: {ours:.2f} {other:.2f} {ours / other:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
