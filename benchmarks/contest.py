"""One method on one seed. What all methods of a seed have in common is made once: the start.

A start is a folder with the tasks, the base model, the warm start and its evaluation. A method adds rounds of
reinforcement from that warm start and the evaluation of what they end with. It is the pipeline of workflows/train.py,
with its rounds in one process and without report and registry.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from steptool.artifacts.lineage import sign
from steptool.config import Config, EvaluatedPolicy
from steptool.pipeline.episodes import TaskSet
from steptool.records import Evaluation, Query, Trajectory
from steptool.records.tables import read_records, write_records

BASE, WARM_START = "base", "warm_start"
EVALUATIONS = "evaluations.parquet"
"""It is the last file that a start or a method writes: one that has it is complete."""
_QUERIES = "queries.parquet"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the entries of another laid over it, section by section."""
    both = dict(base)
    for key, value in over.items():
        both[key] = merge(both.get(key, {}), value) if isinstance(value, Mapping) else value
    return both


def start_folder(output: Path, seed: int) -> Path:
    """Where the start of a seed lies."""
    return output / f"start-{seed}"


def run_folder(output: Path, method: str, seed: int) -> Path:
    """Where a method keeps its evaluation and its model for a seed."""
    return output / f"{method}-{seed}"


def make_start(config: Mapping[str, Any], seed: int, output: Path) -> None:
    """Make the start of a seed, unless it is complete."""
    folder = start_folder(output, seed)
    if (folder / EVALUATIONS).is_file():
        return
    settings = _open_folder(folder, config, seed)
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log):
        _prepare(settings, folder)
        _evaluate(settings, folder, folder, WARM_START)


def run_method(config: Mapping[str, Any], method: str, seed: int, output: Path) -> None:
    """Train a method from the start of a seed and evaluate it, unless that was done; prints its pass rate."""
    folder, start = run_folder(output, method, seed), start_folder(output, seed)
    if (folder / EVALUATIONS).is_file():
        return
    settings, begin = _open_folder(folder, config, seed), time.process_time()
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log):
        _learn(settings, start, folder / method, folder / "rounds")
        rows = _evaluate(settings, start, folder, method)
    passed = [row.passed for row in rows if row.decoding == "greedy" and row.passed is not None]
    rate, seconds = sum(passed) / max(1, len(passed)), time.process_time() - begin
    print(f"{method}-{seed}: pass rate {rate:.3f}, {seconds:.0f} s of processor time", flush=True)


def _open_folder(folder: Path, config: Mapping[str, Any], seed: int) -> Config:
    """Make the folder with its configuration in it."""
    settings = Config.model_validate({**config, "seed": seed})
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return settings


def _prepare(config: Config, folder: Path) -> None:
    from steptool.data.ingest import ingest
    from steptool.pipeline.preparation import prepare
    from steptool.records.episodes import read_queries
    from steptool.training.warm_start import warm_start

    for part in (BASE, WARM_START, "tasks"):
        shutil.rmtree(folder / part, ignore_errors=True)
    data = ingest(config, folder / "data")
    demonstrations = read_records(data.demonstrations_path, Trajectory)
    prepared = prepare(read_queries(data.queries_path), demonstrations, config, folder / BASE)
    sign(folder / BASE, None, BASE, [], note=config.policy.base)
    queries = write_records(folder / _QUERIES, prepared.queries, Query)
    TaskSet.write(folder / "tasks", queries, data.demonstrations_path, config)
    warm_start(
        folder / BASE,
        prepared.lessons.encoded,
        config.warm_start,
        config.policy,
        config.seed,
        folder / WARM_START,
        tokens_per_pass=config.ppo.tokens_per_pass,
    )
    sign(folder / WARM_START, folder / BASE, WARM_START, [queries])


def _learn(config: Config, start: Path, model: Path, work: Path) -> None:
    """All rounds of a method; a call that was interrupted goes on behind the last complete round."""
    from steptool.pipeline.learning import RoundInputs, play_and_learn

    work.mkdir(exist_ok=True)
    inputs = RoundInputs(start / WARM_START, TaskSet(start / "tasks"), start / _QUERIES, config)
    finished = play_and_learn(inputs, 0, config.ppo.rounds, start / WARM_START, None, work)
    shutil.copytree(finished[-1].learned.model, model, dirs_exist_ok=True)
    shutil.rmtree(work)


def _evaluate(config: Config, start: Path, folder: Path, name: str) -> list[Evaluation]:
    """Play the tasks of the configured split with the model of this name in a folder, and write the rows."""
    from steptool.pipeline.episodes import evaluate

    queries = TaskSet(start / "tasks").read_evaluation_queries(config.evaluation)
    rows = evaluate(EvaluatedPolicy(name=name, model=str(folder / name)), queries, config).rows
    partial = write_records(folder / f"{EVALUATIONS}.partial", rows, Evaluation)
    partial.rename(folder / EVALUATIONS)
    return list(rows)
