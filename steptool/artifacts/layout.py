"""The folder of a run: every artifact under a name that says what it is, put in place whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

CONFIG, QUERIES, DEMONSTRATIONS = "config.yaml", "queries.parquet", "demonstrations.parquet"
LESSONS = "lessons.parquet"
METRICS, COSTS, EVALUATED = "metrics.parquet", "costs.parquet", "evaluations.parquet"
MODEL, WARM_START = "model", "warm_start"
REPORT, FIGURES, QUARANTINE = "report.html", "metrics.json", "quarantine.jsonl"
VERDICTS, PREFERENCES = "verdicts.parquet", "preferences.parquet"
PAGE, TABLE, CSV, LATEX = "evaluation.html", "table.md", "table.csv", "table.tex"
VIEWER, RECORDED_REWARDS = "viewer.html", "recorded_rewards.parquet"
MARKS, EVALUATION_MARKS = (CONFIG, METRICS), (CONFIG, PAGE)
"""Files by which a former run, and a former evaluation, is known."""


def of_round(kind: str, round: int) -> str:
    """Name of a round's file; kind: trajectories, rewards or advantages."""
    return f"{kind}_round_{round:02d}.parquet"


def of_evaluation(kind: str, episodes: str) -> str:
    """Name of an evaluation's file; kind: trajectories or rewards; episodes: model and decoding, as in base_greedy."""
    return f"evaluation_{kind}_{episodes}.parquet"


def of_policy(name: str) -> str:
    """Name of the file of the episodes of a policy in an evaluation."""
    return f"trajectories_{name}.parquet"


def check_target(target: str, marks: Sequence[str] = MARKS) -> None:
    """Raise ValueError if publishing to `target` would replace anything but a former run, known by its `marks`."""
    if not target or "://" in target:
        return
    folder = Path(target)
    former = all((folder / mark).is_file() for mark in marks)
    if folder.exists() and not former and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder}: holds something else than a former run; give --output a new or empty folder")


def publish(built: Path, target: str, marks: Sequence[str] = MARKS) -> None:
    """Put a finished folder in place of `target`: whole or not at all. A url is written through fsspec."""
    check_target(target, marks)
    if "://" in target:
        fs, path = fsspec.core.url_to_fs(target)
        fs.put(f"{built}/", path.rstrip("/") + "/", recursive=True)
        return
    final = Path(target).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh, former = (final.with_name(f".{final.name}.{os.getpid()}.{k}") for k in ("partial", "former"))
    try:
        shutil.copytree(built, fresh)
        if final.exists():
            final.rename(former)
        fresh.rename(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def publish_if_named(built: Path, target: str, marks: Sequence[str] = MARKS) -> str:
    """Publish a finished folder to `target` unless that is empty. Returns the place where the files lie now."""
    if not target:
        return str(built)
    publish(built, target, marks)
    return target.rstrip("/")
