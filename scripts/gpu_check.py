"""What a GPU is good for: the tests marked gpu, speed and memory of each part of training, and a model that is trained.

    python -m scripts.gpu_check            ends within ten minutes on one H100 or H200
    python -m scripts.gpu_check --small    the same on a CPU with the smallest sizes

Every part runs in a process of its own and has seconds of its own, so that a failure or a limit of time in one loses
nothing of the others. It needs no network, and nothing of Flyte, TRL or vLLM. docs/run-on-a-cluster.md lists the
packages that it needs, and how to bring SmolLM2 along, which one part trains.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import gpu_speed
from scripts.gpu_speed import Row

ROOT = Path(__file__).parents[1]
_RESULT = "RESULT "


@dataclass(frozen=True)
class Part:
    """A part of the check."""

    run: Callable[[bool], list[Row]]
    """Called with whether the sizes are small; returns rows of the table."""
    seconds: float
    """How long it may take."""


def run_tests(small: bool) -> list[Row]:
    """The tests marked gpu; on a CPU they are skipped."""
    files = [str(path) for path in sorted(ROOT.glob("tests/*/test_gpu.py"))]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=ROOT, check=False)
    return [{"part": "tests", "exit code": result.returncode}]


def train_smollm(small: bool) -> list[Row]:
    """SmolLM2 by configs/smollm_gpu.yaml for as many rounds as fit; without its folder the part is left out."""
    from scripts.gpu_training import BASE, train

    if not small and not (BASE / "config.json").is_file():
        return [{"part": "training", "way": f"left out: {BASE} is not there; python -m scripts.smollm writes it"}]
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as folder:
        return train(BASE, TRAINING_SECONDS, small, Path(folder))


TRAINING_SECONDS = 160.0
"""When the rounds of the training end; its evaluation comes after that."""
# The first six may take all their seconds; the others get what is left.
PARTS = {
    "tests": Part(run_tests, 80),
    "full": Part(gpu_speed.measure_full, 80),
    "lora": Part(gpu_speed.measure_lora, 90),
    "rollout": Part(gpu_speed.measure_rollout, 50),
    "log_probs": Part(gpu_speed.measure_log_probs, 40),
    "training": Part(train_smollm, 230),
    "attention": Part(gpu_speed.measure_attention, 30),
    "full_plain": Part(gpu_speed.measure_full_plain, 50),
    "lora_checkpointed": Part(gpu_speed.measure_lora_checkpointed, 60),
}


def run_part(name: str, small: bool, seconds: float) -> list[Row]:
    """Run a part in a process of its own, pass on what it prints, and end it when its seconds are over."""
    command = [sys.executable, "-u", "-m", "scripts.gpu_check", "--part", name, *["--small"] * small]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    rows: list[Row] = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_RESULT):
            rows += json.loads(line.removeprefix(_RESULT))
        else:
            print(f"  {line.rstrip()}", flush=True)
    code = process.wait()
    timer.cancel()
    return rows or [{"part": name, "way": f"no result after {seconds:.0f} s at most, exit code {code}"}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every part, or one of them in this process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the smallest sizes, on a CPU")
    parser.add_argument("--part", choices=list(PARTS), help="only this part, in this process")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="only these parts")
    parser.add_argument("--seconds", type=float, default=580.0, help="seconds for all parts together")
    options = parser.parse_args(arguments)
    if options.part:
        rows = PARTS[options.part].run(options.small)
        print(_RESULT + json.dumps(rows), flush=True)
        return
    end = time.monotonic() + options.seconds
    print_machine()
    table: list[Row] = []
    for name in options.only or PARTS:
        seconds = min(PARTS[name].seconds, end - time.monotonic())
        if seconds < 10:
            table.append({"part": name, "way": "no time left"})
            continue
        print(f"== {name}, {seconds:.0f} s at most, {end - time.monotonic():.0f} s left", flush=True)
        start = time.monotonic()
        try:
            table += run_part(name, options.small, seconds)
        except Exception:  # the next part may still work
            traceback.print_exc()
        print(f"== {name} took {time.monotonic() - start:.0f} s", flush=True)
    print("\n" + "\n".join("  ".join(f"{key}: {value}" for key, value in row.items()) for row in table), flush=True)


def print_machine() -> None:
    """Print what the figures were measured on."""
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{card}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)


if __name__ == "__main__":
    main()
