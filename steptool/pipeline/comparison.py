"""The folder of an evaluation: the episodes of every policy, the judge's verdicts, tables, page and viewer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steptool.artifacts import layout
from steptool.artifacts.progress import say
from steptool.artifacts.queries import read_queries
from steptool.config import Config
from steptool.contracts.tables import concatenate, read_records, write_records
from steptool.evaluation.measures import apply_verdicts
from steptool.evaluation.results import Results, compute_results
from steptool.evaluation.tables import plain_figures, to_csv, to_latex, to_markdown
from steptool.judge.annotator import count_reasons
from steptool.judge.outcome_judge import judge_outcomes
from steptool.judge.verdicts import read_verdicts
from steptool.pipeline.run_pages import dump_config
from steptool.records import Cost, Evaluation, Preference, Trajectory, Verdict
from steptool.report.evaluation_page import evaluation_page
from steptool.report.judge_costs import tabulate_judge_costs
from steptool.report.viewer import EpisodeFiles, write_viewer


@dataclass(frozen=True)
class Judgement:
    """A judge's verdicts on the greedy episodes, its preferences between those of two policies, and what it cost."""

    verdicts: list[Verdict]
    """The stored ones first."""
    preferences: list[Preference]
    counts: dict[str, float]
    """Requests, replies and money by name."""


@dataclass(frozen=True)
class ComparisonPages:
    """The page of an evaluation as HTML, and its table as Markdown."""

    html: str
    table: str


def judge_episodes(queries: Path, parts: Sequence[Path], config: Config) -> Judgement:
    """Read the stored verdicts and, if so configured, ask the judge about the greedy episodes.

    `parts` holds for each policy of the configuration the folder with its rows and its episodes.
    """
    verdicts = read_verdicts(config.evaluation.verdicts)
    if not config.evaluation.judged:
        return Judgement(verdicts, [], {})
    episodes = {
        policy.name: _read_greedy(part, policy.name)
        for policy, part in zip(config.evaluation.policies, parts, strict=True)
    }
    outcomes = judge_outcomes(config.rewards.judge, {q.query_id: q for q in read_queries(queries)}, episodes)
    say("judge", f"{len(outcomes.verdicts)} verdicts, {len(outcomes.preferences)} preferences")
    if outcomes.missing:
        say("judge", f"votes are missing: {count_reasons(outcomes.missing)}")
    return Judgement([*verdicts, *outcomes.verdicts], outcomes.preferences, outcomes.counts)


def write_comparison(
    folder: Path,
    queries: Path,
    parts: Sequence[Path],
    verdicts: Path,
    preferences: Path,
    judge_costs: Path,
    config: Config,
) -> ComparisonPages:
    """Collect what the policies have played in a folder, compare them, and write tables, page and viewer.

    `parts` holds for each policy of the configuration the folder with its rows, its episodes and its costs.
    """
    files = {layout.QUERIES: queries, layout.VERDICTS: verdicts, layout.PREFERENCES: preferences}
    files |= {file.name: file for part in parts for file in part.glob(layout.of_policy("*"))}
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    concatenate([*(part / layout.COSTS for part in parts), judge_costs], Cost, folder / layout.COSTS)
    results = _compute_results(folder, parts, config)
    return ComparisonPages(_write_pages(folder, results, config), to_markdown(results))


def _read_greedy(part: Path, name: str) -> list[Trajectory]:
    rows = read_records(part / layout.EVALUATED, Evaluation)
    greedy = {row.trajectory_id for row in rows if row.decoding == "greedy"}
    return [t for t in read_records(part / layout.of_policy(name), Trajectory) if t.trajectory_id in greedy]


def _compute_results(folder: Path, parts: Sequence[Path], config: Config) -> Results:
    """Join the rows of the policies into one file, with the judge's verdicts, and compute the results."""
    outcomes = read_records(folder / layout.VERDICTS, Verdict)
    rows = [row for part in parts for row in read_records(part / layout.EVALUATED, Evaluation)]
    rows = apply_verdicts(rows, outcomes)
    write_records(folder / layout.EVALUATED, rows, Evaluation)
    preferences = read_records(folder / layout.PREFERENCES, Preference)
    queries, draws = read_queries(folder / layout.QUERIES), config.evaluation.bootstrap
    return compute_results(rows, outcomes, preferences, queries, draws=draws, seed=config.seed)


def _write_pages(folder: Path, results: Results, config: Config) -> str:
    """Write configuration, tables, figures, page and viewer into the folder. Returns the page."""
    settings = dump_config(config)
    episodes = [
        EpisodeFiles(folder / layout.of_policy(policy.name), evaluations=folder / layout.EVALUATED)
        for policy in config.evaluation.policies
    ]
    write_viewer(folder / layout.VIEWER, folder / layout.QUERIES, episodes, "Episodes of the evaluation")
    costs = [cost for cost in read_records(folder / layout.COSTS, Cost) if cost.stage == "judge"]
    judge_costs = tabulate_judge_costs({"judge": costs})
    html = evaluation_page(results, settings, layout.VIEWER, judge_costs)
    texts = {
        layout.CONFIG: settings,
        layout.TABLE: to_markdown(results),
        layout.CSV: to_csv(results),
        layout.LATEX: to_latex(results),
        layout.FIGURES: json.dumps(plain_figures(results), indent=1) + "\n",
        layout.PAGE: html,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return html
