"""The tasks that write what people and other tools read: the folder of the run with its page, the viewer, an export."""

import os
from pathlib import Path
from typing import NamedTuple

from flytekit import Deck
from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import Stopwatch, say, say_results
from steptool.config import Config
from steptool.data.export import Form
from tasks.runtime.artifacts import Model, Parquet, download, download_all, make_folder
from tasks.runtime.stage import stage


class ReportOutputs(NamedTuple):
    """The page, the figures of metrics.json, the trained model, the evaluations behind them, and their queries."""

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
) -> ReportOutputs:
    """Collect every artifact in one folder, write the report from it, and put it in place of `output` if it is given.

    `metrics`, `costs`: of the stages outside of the rounds; `round_metrics`, `round_costs`, `trajectories`, `rewards`,
    `advantages`: by round; `models`: by folder name; `evaluations`: by model; `evaluation_trajectories` and
    `evaluation_rewards`: by model and decoding, as in steptool_greedy.
    """
    watch = Stopwatch("report")
    from steptool.artifacts import lineage as names
    from steptool.pipeline.folders import RunFiles, write_run
    from steptool.pipeline.tracking import track_results
    from steptool.storage.transfer import deliver_folder

    files = RunFiles(
        queries=download(queries),
        demonstrations=download(demonstrations),
        lessons=download(lessons),
        recorded_rewards=download(recorded_rewards),
        quarantine=download(quarantine),
        metrics=download_all([*metrics, *round_metrics]),
        costs=download_all([*costs, *round_costs]),
        models=_download_named(models),
        trajectories=download_all(trajectories),
        rewards=download_all(rewards),
        advantages=download_all(advantages),
        evaluations=download_all(list(evaluations.values())),
        evaluation_trajectories=_download_named(evaluation_trajectories),
        evaluation_rewards=_download_named(evaluation_rewards),
    )
    folder = make_folder("run")
    pages = write_run(folder, files, config, watch.measure_cost)
    Deck("report", pages.html)
    place = deliver_folder(folder, output, names.TRAINING)
    linked_files = (names.REPORT, names.VIEWER, names.FIGURES, names.MODEL)
    track_results(pages.table, {name: f"{place}/{name}" for name in linked_files}, config)
    say_results("report", pages.table, {"report": f"{place}/{names.REPORT}"})
    return ReportOutputs(
        FlyteFile(f"{place}/{names.REPORT}"),
        FlyteFile(f"{place}/{names.FIGURES}"),
        Model(f"{place}/{names.MODEL}"),
        Parquet(f"{place}/{names.EVALUATED}"),
        Parquet(f"{place}/{names.QUERIES}"),
    )


def _download_named(artifacts: dict[str, Parquet]) -> dict[str, Path]:
    return {name: download(artifact) for name, artifact in artifacts.items()}


@stage("view")
def write_page(
    title: str,
    queries: Parquet,
    trajectories: Parquet,
    rewards: Parquet | None,
    advantages: Parquet | None,
    trajectories_b: Parquet | None,
    rewards_b: Parquet | None,
    advantages_b: Parquet | None,
    page_size: int,
    output: str,
) -> FlyteFile:
    """Write the viewer for one set of trajectories, or for two beside each other, and put its pages in place."""
    from steptool.report.viewer import write_viewer
    from steptool.report.viewer_pages import EpisodeFiles
    from steptool.storage.transfer import deliver

    files = [(trajectories, rewards, advantages), (trajectories_b, rewards_b, advantages_b)]
    sources = [EpisodeFiles(download(t), r and download(r), a and download(a)) for t, r, a in files if t]
    folder, name = os.path.split(output)
    first = write_viewer(make_folder("viewer") / name, download(queries), sources, title, page_size)
    pages = sorted(first.parent.iterdir(), key=lambda page: page == first)  # last, because it links to the others
    places = deliver({page.name: page for page in pages}, folder or ".")
    for page in pages:
        say("view", f"{places[page.name]}: {page.stat().st_size / 1e6:,.1f} MB")
    return FlyteFile(places[first.name])


@stage("export")
def export_trajectories(
    trajectories: Parquet, queries: Parquet, form: Form, output: str, more_trajectories: list[Parquet] | None
) -> FlyteFile:
    """Write the trajectories of several files in a form and put the new file into a folder or url."""
    from steptool.data.export import export
    from steptool.storage.transfer import deliver

    result = export(
        download_all([trajectories, *(more_trajectories or [])]), download(queries), form, make_folder("exported")
    )
    place = deliver({result.path.name: result.path}, output)[result.path.name]
    say("export", f"{place}: {', '.join(f'{name} {count}' for name, count in result.counts.items())}")
    return FlyteFile(place)
