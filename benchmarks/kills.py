"""Kills at random moments of training, export, publishing, promotion and serving, compared with undisturbed stages.

A process of its own runs one stage and gets SIGKILL at a moment drawn between its beginning and its usual end. The
stage is then started again, as a second attempt would, and runs to its end. The result is another one if any file
differs from those of the undisturbed stage; a file that the undisturbed stage does not leave is left behind. Of a
registry, whose names hold the time, the log of champions, the digests of the versions and the faults are compared.

Prints the figures of each stage, and ends with 1 if a result is another one or a file is left behind.

    python benchmarks/kills.py              12 kills, half a minute
    python benchmarks/kills.py --kills 200  the long form (make kills)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn

from steptool.config import Config
from steptool.data.export import Form, export
from steptool.models.load import EMBEDDED, make_tiny_model, train_tokenizer
from steptool.policies.serve import load_served, make_app
from steptool.records import Query, Step, StepReward, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.tables import write_records, write_whole
from steptool.registry import Registry
from steptool.storage.transfer import check_target, deliver_folder
from steptool.training.rounds import train_round

EPISODES, STEPS = 12, 3
CONFIG = {
    "ppo": {"rounds": 2, "batch_size": 4, "micro_batch_size": 4, "epochs": 4, "learning_rate": 1e-3, "max_mismatch": 0},
    "rollout": {"temperature": 1.0},
}
Contents = dict[str, str]
"""What a stage left: digest by name."""
FORK = multiprocessing.get_context("fork")
"""A forked process has imported torch already, so that a kill hits the stage and not the imports."""


@dataclass(frozen=True)
class Stage:
    """Something that a person starts again after it was killed."""

    name: str
    run: Callable[[Path, Path], None]
    """From a folder of material to a place."""
    read: Callable[[Path], Contents]


@dataclass
class Figures:
    """What became of the kills of a stage."""

    kills: int = 0
    """Those that hit the stage before its end."""
    late: int = 0
    other_results: int = 0
    left_behind: int = 0
    failures: int = 0
    """Second attempts that failed."""


def make_episode(number: int) -> Trajectory:
    """An episode of random tokens with a few calls; every second one is solved."""
    draw = np.random.default_rng(number)
    spans = [(8 * step + 6, 8 * step + 11) for step in range(STEPS)]
    call = {"function": {"name": "find", "arguments": {"number": number}}}
    return Trajectory(
        f"t{number}", f"q{number // 2}", "desk", "", "policy", 0, number % 2, 1.0,
        messages=[
            {"role": "user", "content": f"Find {number // 2}."}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "here"}, {"role": "assistant", "content": f"It is {number}."},
        ],
        input_ids=draw.integers(5, 200, 8 * STEPS + 6).astype(np.int32),
        spans=spans,
        logprobs=np.full(5 * STEPS, -2.0, np.float32),
        steps=[Step(ToolCall("find", {"number": number}), StepStatus.OK, "here") for _ in spans],
        stop_reason=StopReason.FINISHED, final_answer="", solved=float(number % 2), seconds=0.0,
    )  # fmt: skip


def make_material(work: Path) -> None:
    """The inputs of all stages: a model, episodes with their queries, two finished runs."""
    tokenizer = train_tokenizer(["Find the order and cancel it."] * 20, vocabulary=300)
    for folder, seed in (("first/model", 0), ("second/model", 1)):
        tokenizer.save_pretrained(work / folder)
        make_tiny_model(tokenizer, max_context=128, seed=seed, hidden=32).save_pretrained(work / folder)
        for number in range(60):
            (work / folder).with_name(f"{number}.parquet").write_text(f"{folder} {number}" * 5_000, encoding="utf-8")
    episodes = [make_episode(number) for number in range(EPISODES)]
    write_records(work / "episodes.parquet", episodes, Trajectory)
    queries = [Query(f"q{number}", "train", "desk", f"Find {number}.", ()) for number in range(EPISODES // 2)]
    write_records(work / "queries.parquet", queries, Query)


def train(work: Path, place: Path) -> None:
    """A round of step-grained PPO with a checkpoint after each update, which the last one removes."""
    torch.set_num_threads(1)
    episodes = [make_episode(number) for number in range(EPISODES)]
    rewards = [
        StepReward(f"t{number}", step, "rules", "1", "", 1.0, 0.5, float(number % 2) if step == STEPS - 1 else None)
        for number in range(EPISODES)
        for step in range(STEPS)
    ]
    model = work / "first" / "model"
    settings: dict[str, Any] = {"config": Config.model_validate(CONFIG), "round_index": 0, "checkpoint_every": 1}
    train_round(model, model, episodes, rewards, out_dir=place / "model", checkpoints=place / "checkpoints", **settings)
    shutil.rmtree(place / "checkpoints")


def export_all(work: Path, place: Path) -> None:
    """The episodes in every form."""
    for form in Form:
        export(work / "episodes.parquet", work / "queries.parquet", form, place)


def publish_runs(work: Path, place: Path) -> None:
    """A run in place of a former one."""
    for run in ("first", "second"):
        check_target(str(place / "run"), "training")
        deliver_folder(work / run, str(place / "run"), "training")


def promote(work: Path, place: Path) -> None:
    """Two models, one after the other."""
    registry = Registry(place)
    for number, run in enumerate(("first", "second")):
        version = registry.publish(work / run / "model", {"code_version": run})
        registry.promote(version.version_id, after=number, reason=run)


def serve(work: Path, place: Path) -> None:
    """The embedded model behind HTTP: its answers to four requests, and its folder, which serving does not touch."""
    torch.set_num_threads(1)
    shutil.copytree(EMBEDDED, place / "model", dirs_exist_ok=True)
    server = uvicorn.Server(uvicorn.Config(make_app(load_served(place / "model", "m")), port=0, log_level="error"))
    listener = server.config.bind_socket()
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    answers = [_ask(listener.getsockname()[1], f"Cancel order {number}.") for number in range(4)]
    server.should_exit = True
    with write_whole(place / "answers.json") as file:
        file.write_text(json.dumps(answers), encoding="utf-8")


TOOLS = [
    {
        "type": "function",
        "function": {"name": "cancel"},
    }
]


def _ask(port: int, text: str) -> Any:
    message = {"role": "user", "content": text}
    body = {"model": "m", "messages": [message], "temperature": 0, "max_tokens": 16, "tools": TOOLS}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"]


def read_files(place: Path) -> Contents:
    """The digest of every file."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read_registry(place: Path) -> Contents:
    """The log of champions and the faults of a registry; what an upload left is pruned, as its command does."""
    registry = Registry(place)
    registry.prune(timedelta(0))
    champions = {
        f"champion {entry.sequence}": f"{registry.version(entry.version_id).digest} {entry.reason}"
        for entry in registry.history()
    }
    versions = [version.digest for version in registry.versions()]
    unfinished = {str(path.relative_to(place)): "" for path in place.rglob("*.partial/*")}
    return {**champions, **unfinished, "versions": json.dumps(versions), "faults": json.dumps(registry.verify())}


STAGES = (
    Stage("training", train, read_files),
    Stage("export", export_all, read_files),
    Stage("publishing a run", publish_runs, read_files),
    Stage("promotion", promote, read_registry),
    Stage("serving", serve, read_files),
)


def start(stage: Stage, work: Path, place: Path) -> Any:
    """Start a stage in a process of its own."""
    process = FORK.Process(target=stage.run, args=(work, place))
    process.start()
    return process


def measure(stage: Stage, work: Path, folder: Path, kills: int, draw: random.Random) -> Figures:
    """Kill a stage so many times."""
    begin = time.monotonic()
    undisturbed = start(stage, work, folder / "undisturbed")
    undisturbed.join()
    seconds, expected, figures = time.monotonic() - begin, stage.read(folder / "undisturbed"), Figures()
    while figures.kills < kills:
        place = folder / "killed"
        process = start(stage, work, place)
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:
            figures.late += 1  # it had ended before
        else:
            figures.kills += 1
            again = start(stage, work, place)
            again.join()
            count(figures, again.exitcode, stage.read(place), expected)
        shutil.rmtree(place, ignore_errors=True)
    return figures


def count(figures: Figures, exit_code: int | None, contents: Contents, expected: Contents) -> None:
    """Count what the second attempt left."""
    figures.failures += exit_code != 0
    figures.other_results += any(contents.get(name) != digest for name, digest in expected.items())
    extra = sorted(contents.keys() - expected.keys())
    figures.left_behind += bool(extra)
    if extra:
        print(f"left behind: {', '.join(extra[:3])}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12, help="of all stages together")
    options = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    draw, all_figures = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        make_material(work)
        for stage in STAGES:
            (Path(folder) / stage.name).mkdir()
            figures = measure(stage, work, Path(folder) / stage.name, options.kills // len(STAGES), draw)
            all_figures.append(figures)
            print(
                f"kills of {stage.name}: {figures.kills} kills, {figures.failures} second attempts failed, "
                f"{figures.other_results} other results, {figures.left_behind} left something behind",
                flush=True,
            )
    print(f"kills: {sum(figures.kills for figures in all_figures)} in all")
    if any(figures.failures or figures.other_results or figures.left_behind for figures in all_figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
