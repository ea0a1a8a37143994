"""The comparison of policies that an evaluation has played: a judge's verdicts, tables, page and viewer."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml
from flytekit import Deck
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.progress import Stopwatch, say
from steptool.config import Config
from steptool.contracts.columns import Row
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Parquet, download, make_folder, write_costs
from tasks.runtime.stage import stage

if TYPE_CHECKING:  # its imports take seconds
    from steptool.evaluation.results import Results


class Judged(NamedTuple):
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
def judge(config: Config, queries: Parquet, played: list[FlyteDirectory]) -> Judged:
    """Read the stored verdicts and, if so configured, ask the judge about the greedy episodes."""
    watch = Stopwatch("judge")
    from steptool.artifacts import layout as names
    from steptool.artifacts.queries import read_queries
    from steptool.contracts.tables import read_records, read_rows, write_rows
    from steptool.judge.outcome_judge import judge_outcomes
    from steptool.judge.verdicts import read_verdicts
    from steptool.judge.votes import count_reasons
    from steptool.records import Evaluation, Preference, Trajectory, Verdict

    files = localize(config, make_folder("fetched"), "evaluation.verdicts").evaluation.verdicts
    verdicts, preferences = read_verdicts(files), list[Row]()
    counts: dict[str, float] = {}
    if config.evaluation.judged:
        queries_by_id, episodes = {q.query_id: q for q in read_queries(download(queries))}, {}
        for policy, folder in zip(config.evaluation.policies, map(download, played), strict=True):
            rows = read_rows(folder / names.EVALUATED, Evaluation)
            greedy = {row["trajectory_id"] for row in rows if row["decoding"] == "greedy"}
            trajectories = read_records(folder / names.of_policy(policy.name), Trajectory)
            episodes[policy.name] = [t for t in trajectories if t.trajectory_id in greedy]
        outcomes = judge_outcomes(config.rewards.judge, queries_by_id, episodes)
        verdicts, preferences, counts = verdicts + outcomes.verdicts, outcomes.preferences, outcomes.counts
        say("judge", f"{len(outcomes.verdicts)} verdicts, {len(preferences)} preferences")
        if outcomes.missing:
            say("judge", f"votes are missing: {count_reasons(outcomes.missing)}")
    target = make_folder("judged")
    return Judged(
        Parquet(str(write_rows(target / names.VERDICTS, verdicts, Verdict))),
        Parquet(str(write_rows(target / names.PREFERENCES, preferences, Preference))),
        write_costs(target, watch.cost(counts=counts)),
    )


@stage("compare")
def compare(
    config: Config,
    output: str,
    queries: Parquet,
    played: list[FlyteDirectory],
    verdicts: Parquet,
    preferences: Parquet,
    judge_costs: Parquet,
) -> Comparison:
    """Compare the policies, and put tables, page and episodes in place of `output` if it is given."""
    from steptool.artifacts import layout as names
    from steptool.contracts.tables import concatenate
    from steptool.evaluation.tables import to_markdown
    from steptool.records import Cost

    run, parts = make_folder("evaluation"), [download(part) for part in played]
    episodes = {file.name: file for part in parts for file in part.glob(names.of_policy("*"))}
    files = {
        names.QUERIES: download(queries),
        names.VERDICTS: download(verdicts),
        names.PREFERENCES: download(preferences),
    }
    for name, file in {**files, **episodes}.items():
        shutil.copyfile(file, run / name)
    concatenate([*(part / names.COSTS for part in parts), download(judge_costs)], Cost, run / names.COSTS)
    results = _compute_results(run, parts, config)
    html, table = _write_pages(run, results, config), to_markdown(results)
    Deck("evaluation", html)
    place = str(run)
    if output:
        names.publish(run, output, names.EVALUATION_MARKS)
        place = output.rstrip("/")
    print(f"\n{table}\npage: {place}/{names.PAGE}", flush=True)
    return Comparison(
        FlyteFile(f"{place}/{names.PAGE}"),
        FlyteFile(f"{place}/{names.TABLE}"),
        FlyteFile(f"{place}/{names.FIGURES}"),
        Parquet(f"{place}/{names.EVALUATED}"),
        FlyteFile(f"{place}/{names.VIEWER}"),
    )


def _compute_results(run: Path, parts: list[Path], config: Config) -> "Results":
    """Join the rows of the policies into one file, with the judge's verdicts, and compute the results."""
    from steptool.artifacts import layout as names
    from steptool.artifacts.queries import read_queries
    from steptool.contracts.tables import read_rows, write_rows
    from steptool.evaluation.measures import apply_verdicts
    from steptool.evaluation.results import compute_results
    from steptool.records import Evaluation, Preference, Verdict

    outcomes = read_rows(run / names.VERDICTS, Verdict)
    rows = [row for part in parts for row in read_rows(part / names.EVALUATED, Evaluation)]
    rows = apply_verdicts(rows, outcomes)
    write_rows(run / names.EVALUATED, rows, Evaluation)
    preferences = read_rows(run / names.PREFERENCES, Preference)
    queries, draws = read_queries(run / names.QUERIES), config.evaluation.bootstrap
    return compute_results(rows, outcomes, preferences, queries, draws=draws, seed=config.seed)


def _write_pages(run: Path, results: "Results", config: Config) -> str:
    """Write configuration, tables, figures, page and viewer into the folder. Returns the page."""
    from steptool.artifacts import layout as names
    from steptool.contracts.tables import read_records
    from steptool.evaluation.tables import plain_figures, to_frame, to_latex, to_markdown
    from steptool.records import Cost
    from steptool.report.evaluation_page import evaluation_page
    from steptool.report.judge_costs import tabulate_judge_costs
    from steptool.report.viewer import EpisodeFiles, write_viewer

    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    episodes = [
        EpisodeFiles(run / names.of_policy(p.name), evaluations=run / names.EVALUATED)
        for p in config.evaluation.policies
    ]
    write_viewer(run / names.VIEWER, run / names.QUERIES, episodes, "Episodes of the evaluation")
    costs = [cost for cost in read_records(run / names.COSTS, Cost) if cost.stage == "judge"]
    judge_costs = tabulate_judge_costs({"judge": costs})
    html = evaluation_page(results, settings, names.VIEWER, judge_costs)
    texts = {
        names.CONFIG: settings,
        names.TABLE: to_markdown(results),
        names.CSV: to_frame(results).to_csv(index=False),
        names.LATEX: to_latex(results),
        names.FIGURES: json.dumps(plain_figures(results), indent=1) + "\n",
        names.PAGE: html,
    }
    for name, text in texts.items():
        (run / name).write_text(text, encoding="utf-8")
    return html
