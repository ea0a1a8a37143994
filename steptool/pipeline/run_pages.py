"""The folder of a training run: every artifact under its name, the figures and the report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from steptool.artifacts import layout
from steptool.config import Config
from steptool.contracts.tables import concatenate, write_records
from steptool.records import Cost, Evaluation, Metric
from steptool.report.run_folder import read_run
from steptool.report.run_page import build_report
from steptool.report.summary import summary, table


@dataclass(frozen=True)
class RunFiles:
    """What a run has made, before it is put into one folder."""

    queries: Path
    demonstrations: Path
    lessons: Path
    """The demonstrations as the model learned them, with their tokens."""
    recorded_rewards: Path
    quarantine: Path
    metrics: Sequence[Path]
    """Of the stages, as the costs."""
    costs: Sequence[Path]
    models: Mapping[str, Path]
    """By the name of the folder."""
    trajectories: Sequence[Path]
    """By round, as rewards and advantages."""
    rewards: Sequence[Path]
    advantages: Sequence[Path]
    evaluations: Sequence[Path]
    """The rows of each model."""
    evaluation_trajectories: Mapping[str, Path]
    """By model and decoding, such as steptool_greedy."""
    evaluation_rewards: Mapping[str, Path]
    """By model and decoding."""

    def by_name(self) -> dict[str, Path]:
        """The files that are copied as they are, by their name in the run's folder."""
        names = {
            layout.QUERIES: self.queries,
            layout.DEMONSTRATIONS: self.demonstrations,
            layout.LESSONS: self.lessons,
            layout.RECORDED_REWARDS: self.recorded_rewards,
            layout.QUARANTINE: self.quarantine,
        }
        of_rounds = {"trajectories": self.trajectories, "rewards": self.rewards, "advantages": self.advantages}
        for kind, files in of_rounds.items():
            names |= {layout.of_round(kind, round_index): file for round_index, file in enumerate(files)}
        of_models = {"trajectories": self.evaluation_trajectories, "rewards": self.evaluation_rewards}
        for kind, by_model in of_models.items():
            names |= {layout.of_evaluation(kind, model): file for model, file in by_model.items()}
        return names


@dataclass(frozen=True)
class RunPages:
    """The report as HTML, and its main table as text."""

    html: str
    table: str


def write_run(folder: Path, files: RunFiles, config: Config, cost: Callable[[], Cost]) -> RunPages:
    """Collect the files of a run in a folder, and write the report and its figures from them.

    `cost` gives what the stage that writes the report has taken; it is added to the costs.
    """
    (folder / layout.CONFIG).write_text(dump_config(config), encoding="utf-8")
    for name, file in files.by_name().items():
        shutil.copyfile(file, folder / name)
    for name, model in files.models.items():
        shutil.copytree(model, folder / name)
    concatenate(list(files.evaluations), Evaluation, folder / layout.EVALUATED)
    concatenate(files.metrics, Metric, folder / layout.METRICS)
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        own = write_records(Path(scratch) / layout.COSTS, [cost()], Cost)
        concatenate([*files.costs, own], Cost, folder / layout.COSTS)
    inputs = read_run(folder)
    figures, html = summary(inputs), build_report(inputs)
    (folder / layout.REPORT).write_text(html, encoding="utf-8")
    (folder / layout.FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return RunPages(html, table(figures))


def dump_config(config: Config) -> str:
    """The configuration with every field, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
