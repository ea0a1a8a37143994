"""The comparison of policies that an evaluation has played: a judge's verdicts, tables, page and viewer."""

from typing import NamedTuple

from flytekit import Deck
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import Stopwatch, say_results
from steptool.config import Config
from steptool.storage.transfer import localize
from tasks.runtime.artifacts import Parquet, download, make_folder, write_costs
from tasks.runtime.stage import stage


class Judgement(NamedTuple):
    """A judge's verdicts on the episodes, its preferences between those of two policies, and what both cost."""

    verdicts: Parquet
    preferences: Parquet
    costs: Parquet


class Comparison(NamedTuple):
    """The page, the table in Markdown, the figures of metrics.json, the rows behind them, and the viewer."""

    page: FlyteFile
    table: FlyteFile
    figures: FlyteFile
    rows: Parquet
    viewer: FlyteFile


@stage("judge", cached=True)
def judge(config: Config, queries: Parquet, evaluations: list[FlyteDirectory]) -> Judgement:
    """Read the stored verdicts and, if so configured, ask the judge about the greedy episodes."""
    watch = Stopwatch("judge")
    from steptool.artifacts import lineage as names
    from steptool.pipeline.folders import judge_episodes
    from steptool.records import Preference, Verdict
    from steptool.records.tables import write_records

    config = localize(config, make_folder("fetched"), "evaluation.verdicts")
    judgement = judge_episodes(download(queries), [download(part) for part in evaluations], config)
    target = make_folder("judged")
    return Judgement(
        Parquet(str(write_records(target / names.VERDICTS, judgement.verdicts, Verdict))),
        Parquet(str(write_records(target / names.PREFERENCES, judgement.preferences, Preference))),
        write_costs(target, watch.cost(counts=judgement.counts)),
    )


@stage("compare")
def compare(
    config: Config,
    output: str,
    queries: Parquet,
    evaluations: list[FlyteDirectory],
    verdicts: Parquet,
    preferences: Parquet,
    judge_costs: Parquet,
    ingest_metrics: Parquet,
) -> Comparison:
    """Compare the policies, and put tables, page and episodes in place of `output` if it is given."""
    from steptool.artifacts import lineage as names
    from steptool.pipeline.folders import write_comparison
    from steptool.pipeline.tracking import track_results
    from steptool.storage.transfer import publish

    folder = make_folder("evaluation")
    pages = write_comparison(
        folder,
        download(queries),
        [download(part) for part in evaluations],
        download(verdicts),
        download(preferences),
        download(judge_costs),
        download(ingest_metrics),
        config,
    )
    Deck("evaluation", pages.html)
    place = publish(folder, output, names.EVALUATION)
    track_results(pages.table, {name: f"{place}/{name}" for name in (names.PAGE, names.FIGURES, names.VIEWER)}, config)
    say_results("compare", pages.table, {"page": f"{place}/{names.PAGE}"})
    return Comparison(
        FlyteFile(f"{place}/{names.PAGE}"),
        FlyteFile(f"{place}/{names.TABLE}"),
        FlyteFile(f"{place}/{names.FIGURES}"),
        Parquet(f"{place}/{names.EVALUATED}"),
        FlyteFile(f"{place}/{names.VIEWER}"),
    )
