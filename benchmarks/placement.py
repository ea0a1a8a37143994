"""Seconds of a round by where its stages run: together in one stage, or each in a pod of its own.

python -m benchmarks.placement [--base FOLDER] [--rounds 4] [--lora 8] [--local]

Prints lines `name: TOGETHER PODS RATIO`: seconds per round from the start of its first pod to the end of its last one,
and CPU time per round. Pods are processes of this machine, two at a time, with the container's own command and a store
on loopback (tests/cluster/pods). With --local it measures `pyflyte run` instead, which has no pods: from the end of the
warm start to the last line of the rounds. FOLDER is a model folder in place of the embedded model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from pods.engine import Engine
from pods.image import build
from pods.package import package, register
from pods.pod import Kubelet
from pods.store import serve_store
from steptool.config import Config

ROOT = Path(__file__).parents[1]
IMAGES = {"cpu": "localhost/steptool:cpu", "gpu": "localhost/steptool:gpu"}
PLACEMENTS = ("together", "pods")
OF_ROUNDS = {
    *("tasks.episodes.rollout", "tasks.episodes.annotate_shard", "tasks.episodes.audit", "tasks.training.ppo"),
    "tasks.training.rounds_together",
}
"""The tasks whose pods make rounds."""


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", help="model folder")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--lora", type=int, default=0, help="rank of the adapter; 0: full fine-tuning")
    parser.add_argument("--local", action="store_true", help="in one process in place of pods")
    arguments = parser.parse_args()
    configs = {
        placement: make_config(arguments.base, arguments.rounds, arguments.lora, placement) for placement in PLACEMENTS
    }
    with tempfile.TemporaryDirectory(prefix="steptool-benchmark-") as folder:
        measure = measure_local if arguments.local else measure_pods
        seconds = {placement: measure(config, Path(folder) / placement) for placement, config in configs.items()}
    names = ("seconds per round", "CPU seconds per round")
    for number, name in enumerate(names[: len(seconds["pods"])]):
        ours, other = (seconds[placement][number] / arguments.rounds for placement in PLACEMENTS)
        print(f"{name}: {ours:.2f} {other:.2f} {ours / other:.2f}", flush=True)


def make_config(base: str, rounds: int, lora_rank: int, placement: str) -> Config:
    """Small rounds of the embedded world: what they cost beside their work is what is looked at."""
    tree: dict[str, Any] = {
        "data": {"train_queries": 32, "validation_queries": 2, "heldout_queries": 2},
        "policy": {"base": base, "lora_rank": lora_rank},
        "warm_start": {"steps": 0},
        "rollout": {"episodes": 16, "shards": 2},
        "ppo": {"rounds": rounds, "epochs": 1, "batch_size": 8, "value_warmup_rounds": 0},
        "rounds": {"placement": placement, "per_stage": rounds},
        "evaluation": {"sampled_repeats": 0, "bootstrap": 100},
    }
    if base != "embedded":
        tree["policy"] |= {"max_context": 1536, "dtype": "bfloat16"}
        tree["rollout"] |= {"episodes": 4, "max_steps": 3, "max_new_tokens": 32}
        tree["ppo"] |= {"batch_size": 2, "micro_batch_size": 2}
    return Config.model_validate(tree)


def measure_pods(config: Config, scratch: Path) -> tuple[float, float]:
    """Seconds from the first pod of the rounds to the end of the last one, and their CPU time."""
    scratch.mkdir()
    with serve_store() as store:
        registry = register(package(ROOT, "workflows", scratch / "package", IMAGES), store, "v1")
        engine = Engine(registry, Kubelet(store, build(scratch / "image", {"OMP_NUM_THREADS": "1"}), scratch))
        execution = engine.execute("workflows.train.train", {"config": config, "output": f"{store.root}/run"})
    if execution.error:
        raise RuntimeError(execution.story())
    pods = [pod for pod in execution.pods if pod.task in OF_ROUNDS]
    wall = max(pod.start + pod.seconds for pod in pods) - min(pod.start for pod in pods)
    return wall, sum(pod.cpu_seconds for pod in pods)


def measure_local(config: Config, scratch: Path) -> tuple[float]:
    """Seconds of the rounds of a local run, from the lines that it prints."""
    scratch.mkdir()
    path = scratch / "config.json"
    path.write_text(config.model_dump_json(), encoding="utf-8")
    program = [str(Path(sys.executable).with_name("pyflyte")), "run", "workflows/train.py", "train"]
    command = [*program, "--config", str(path), "--output", str(scratch / "run")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    began = ended = 0.0
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("warm_start") and not began:
                began = time.monotonic()
            if line.startswith("ppo"):
                ended = time.monotonic()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return (ended - began,)


if __name__ == "__main__":
    main()
