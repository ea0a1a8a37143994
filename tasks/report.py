"""The folder of the run and its page."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from flytekit import Deck
from flytekit.types.file import FlyteFile

from steptool.artifacts.progress import Stopwatch
from steptool.config import Config
from steptool.contracts.tables import concatenate, write_records
from steptool.records import Cost, Evaluation, Metric
from tasks.runtime.artifacts import Model, Parquet, download, download_all, make_folder
from tasks.runtime.stage import stage


class Evidence(NamedTuple):
    """The page, the figures of metrics.json, the trained model, and what it was measured by: rows and queries."""

    report: FlyteFile
    figures: FlyteFile
    model: Model
    evaluations: Parquet
    queries: Parquet


@stage("report")
def report(
    config: Config,
    output: str,
    queries: Parquet,
    demonstrations: Parquet,
    lessons: Parquet,
    recorded_rewards: Parquet,
    quarantine: FlyteFile,
    metrics: list[Parquet],
    costs: list[Parquet],
    round_metrics: list[Parquet],
    round_costs: list[Parquet],
    models: dict[str, Model],
    trajectories: list[Parquet],
    rewards: list[Parquet],
    advantages: list[Parquet],
    evaluations: dict[str, Parquet],
    evaluation_trajectories: dict[str, Parquet],
    evaluation_rewards: dict[str, Parquet],
) -> Evidence:
    """Collect every artifact in one folder, write the report from it, and put it in place of `output` if it is given.

    `metrics`, `costs`: of the stages outside of the rounds; `round_metrics`, `round_costs`, `trajectories`, `rewards`,
    `advantages`: by round; `models`: by folder name; `evaluations`: by model; `evaluation_trajectories` and
    `evaluation_rewards`: by model and decoding, as in steptool_greedy.
    """
    watch = Stopwatch("report")
    from steptool.artifacts import layout as names
    from steptool.report.run_folder import read_run
    from steptool.report.run_page import build_report
    from steptool.report.summary import summary, table

    run = make_folder("run")
    (run / names.CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    read = {
        names.QUERIES: queries,
        names.DEMONSTRATIONS: demonstrations,
        names.LESSONS: lessons,
        names.RECORDED_REWARDS: recorded_rewards,
    }
    _place({**read, names.QUARANTINE: quarantine}, run)
    for kind, files in {"trajectories": trajectories, "rewards": rewards, "advantages": advantages}.items():
        _place({names.of_round(kind, round): file for round, file in enumerate(files)}, run)
    concatenate(download_all(list(evaluations.values())), Evaluation, run / names.EVALUATED)
    _place({names.of_evaluation("trajectories", k): v for k, v in evaluation_trajectories.items()}, run)
    _place({names.of_evaluation("rewards", k): v for k, v in evaluation_rewards.items()}, run)
    for name, model in models.items():
        shutil.copytree(download(model), run / name)

    own = write_records(make_folder("report") / names.COSTS, [watch.cost()], Cost)
    concatenate(download_all([*metrics, *round_metrics]), Metric, run / names.METRICS)
    concatenate([*download_all([*costs, *round_costs]), own], Cost, run / names.COSTS)
    inputs = read_run(run)
    figures, html = summary(inputs), build_report(inputs)
    (run / names.REPORT).write_text(html, encoding="utf-8")
    (run / names.FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Deck("report", html)
    place = str(run)
    if output:
        names.publish(run, output)
        place = output.rstrip("/")
    print(f"\n{table(figures)}\n\nreport: {place}/{names.REPORT}", flush=True)
    return Evidence(
        FlyteFile(f"{place}/{names.REPORT}"),
        FlyteFile(f"{place}/{names.FIGURES}"),
        Model(f"{place}/{names.MODEL}"),
        Parquet(f"{place}/{names.EVALUATED}"),
        Parquet(f"{place}/{names.QUERIES}"),
    )


def _place(files: dict[str, FlyteFile], folder: Path) -> None:
    for name, file in files.items():
        shutil.copyfile(download(file), folder / name)
