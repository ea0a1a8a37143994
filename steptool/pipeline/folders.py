"""The folders of a training run and of an evaluation: artifacts, tables, pages and the judge's verdicts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from steptool.artifacts import lineage
from steptool.artifacts.metrics import name_lost_groups, say
from steptool.config import Config
from steptool.evaluation.measures import apply_verdicts
from steptool.evaluation.results import Results, compute_results, make_plain_figures, to_csv, to_latex, to_markdown
from steptool.judge.annotator import count_reasons
from steptool.judge.judges import judge_outcomes
from steptool.judge.verdicts import read_verdicts
from steptool.records import Cost, Evaluation, Metric, Preference, Trajectory, Verdict
from steptool.records.episodes import read_queries
from steptool.records.tables import concatenate, read_records, write_records
from steptool.report.evaluation_page import build_evaluation_page, tabulate_judge_costs
from steptool.report.run_inputs import MODELS, read_run
from steptool.report.run_page import build_report, format_table, summarise_run
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles


@dataclass(frozen=True)
class RunFiles:
    """The files that a run has made, before they are put into one folder."""

    queries: Path
    demonstrations: Path
    lessons: Path
    """The demonstrations as the model learned them, with their tokens."""
    recorded_rewards: Path
    quarantine: Path
    metrics: Sequence[Path]
    """One file for each stage, as for the costs."""
    costs: Sequence[Path]
    models: Mapping[str, Path]
    """By the name of the folder. An adapter belongs to the model of the warm start, into which it is merged."""
    trajectories: Sequence[Path]
    """One file for each round, as for rewards and advantages."""
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
            lineage.QUERIES: self.queries,
            lineage.DEMONSTRATIONS: self.demonstrations,
            lineage.LESSONS: self.lessons,
            lineage.RECORDED_REWARDS: self.recorded_rewards,
            lineage.QUARANTINE: self.quarantine,
        }
        of_rounds = {"trajectories": self.trajectories, "rewards": self.rewards, "advantages": self.advantages}
        for kind, files in of_rounds.items():
            names |= {lineage.name_round_file(kind, round_index): file for round_index, file in enumerate(files)}
        of_models = {"trajectories": self.evaluation_trajectories, "rewards": self.evaluation_rewards}
        for kind, by_model in of_models.items():
            names |= {lineage.name_evaluation_file(kind, model): file for model, file in by_model.items()}
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
    (folder / lineage.CONFIG).write_text(dump_config(config), encoding="utf-8")
    for name, file in files.by_name().items():
        shutil.copyfile(file, folder / name)
    # These bring torch, which other pages do without.
    from steptool.models.adapter import write_whole_model
    from steptool.models.serving import write_serving

    for name, model in files.models.items():
        write_whole_model(model, files.models[lineage.WARM_START], folder / name)
        write_serving(folder / name, config)
    concatenate(list(files.evaluations), Evaluation, folder / lineage.EVALUATED)
    concatenate(files.metrics, Metric, folder / lineage.METRICS)
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        report_costs = write_records(Path(scratch) / lineage.COSTS, [cost()], Cost)
        concatenate([*files.costs, report_costs], Cost, folder / lineage.COSTS)
    write_viewer(
        folder / lineage.VIEWER, folder / lineage.QUERIES, _list_held_out_episodes(folder), "Held-out episodes"
    )
    inputs = read_run(folder)
    figures, html = summarise_run(inputs), build_report(inputs)
    (folder / lineage.REPORT).write_text(html, encoding="utf-8")
    (folder / lineage.FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return RunPages(html, format_table(figures))


def _list_held_out_episodes(folder: Path) -> list[EpisodeFiles]:
    """The greedy episodes of each model, with their scores where they were scored."""
    sources = []
    for model in MODELS:
        episodes, rewards = (
            folder / lineage.name_evaluation_file(kind, f"{model}_greedy") for kind in ("trajectories", "rewards")
        )
        if episodes.exists():
            rewards_file = rewards if rewards.exists() else None
            sources.append(EpisodeFiles(episodes, rewards_file, evaluations=folder / lineage.EVALUATED))
    return sources


def dump_config(config: Config) -> str:
    """The configuration with every field, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


@dataclass(frozen=True)
class JudgeResults:
    """A judge's verdicts on the greedy episodes, its preferences between those of two policies, and what it cost."""

    verdicts: list[Verdict]
    """Verdicts, the stored ones first."""
    preferences: list[Preference]
    counts: dict[str, float]
    """Requests, replies and money by name."""


@dataclass(frozen=True)
class ComparisonPages:
    """The page of an evaluation as HTML, and its table as Markdown."""

    html: str
    table: str


def judge_episodes(queries: Path, parts: Sequence[Path], config: Config) -> JudgeResults:
    """Read the stored verdicts and, if so configured, ask the judge about the greedy episodes.

    `parts` holds for each policy of the configuration the folder with its rows and its episodes.
    """
    verdicts = read_verdicts(config.evaluation.verdicts)
    if not config.evaluation.judged:
        return JudgeResults(verdicts, [], {})
    episodes = {
        policy.name: _read_greedy(part, policy.name)
        for policy, part in zip(config.evaluation.policies, parts, strict=True)
    }
    outcomes = judge_outcomes(config.rewards.judge, {q.query_id: q for q in read_queries(queries)}, episodes)
    say("judge", f"{len(outcomes.verdicts)} verdicts, {len(outcomes.preferences)} preferences")
    if outcomes.missing:
        say("judge", f"votes are missing: {count_reasons(outcomes.missing)}")
    return JudgeResults([*verdicts, *outcomes.verdicts], outcomes.preferences, outcomes.counts)


def write_comparison(
    folder: Path,
    queries: Path,
    parts: Sequence[Path],
    verdicts: Path,
    preferences: Path,
    judge_costs: Path,
    ingest_metrics: Path,
    config: Config,
) -> ComparisonPages:
    """Collect what the policies have played in a folder, compare them, and write tables, page and viewer.

    `parts` holds for each policy of the configuration the folder with its rows, its episodes and its costs. The page
    names the groups of which ingest has kept no task.
    """
    files = {lineage.QUERIES: queries, lineage.VERDICTS: verdicts, lineage.PREFERENCES: preferences}
    files |= {file.name: file for part in parts for file in part.glob(lineage.name_policy_file("*"))}
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    concatenate([*(part / lineage.COSTS for part in parts), judge_costs], Cost, folder / lineage.COSTS)
    results = _compute_results(folder, parts, config)
    lost_groups = name_lost_groups(read_records(ingest_metrics, Metric))
    results = replace(results, gaps=[*results.gaps, *lost_groups])
    return ComparisonPages(_write_pages(folder, results, config), to_markdown(results))


def _read_greedy(part: Path, name: str) -> list[Trajectory]:
    rows = read_records(part / lineage.EVALUATED, Evaluation)
    greedy = {row.trajectory_id for row in rows if row.decoding == "greedy"}
    return [t for t in read_records(part / lineage.name_policy_file(name), Trajectory) if t.trajectory_id in greedy]


def _compute_results(folder: Path, parts: Sequence[Path], config: Config) -> Results:
    """Join the rows of the policies into one file, with the judge's verdicts, and compute the results."""
    outcomes = read_records(folder / lineage.VERDICTS, Verdict)
    rows = [row for part in parts for row in read_records(part / lineage.EVALUATED, Evaluation)]
    rows = apply_verdicts(rows, outcomes)
    write_records(folder / lineage.EVALUATED, rows, Evaluation)
    preferences = read_records(folder / lineage.PREFERENCES, Preference)
    queries, draws = read_queries(folder / lineage.QUERIES), config.evaluation.bootstrap
    return compute_results(rows, outcomes, preferences, queries, draws=draws, seed=config.seed)


def _write_pages(folder: Path, results: Results, config: Config) -> str:
    """Write configuration, tables, figures, page and viewer into the folder. Returns the page."""
    settings = dump_config(config)
    episodes = [
        EpisodeFiles(folder / lineage.name_policy_file(policy.name), evaluations=folder / lineage.EVALUATED)
        for policy in config.evaluation.policies
    ]
    write_viewer(folder / lineage.VIEWER, folder / lineage.QUERIES, episodes, "Episodes of the evaluation")
    costs = [cost for cost in read_records(folder / lineage.COSTS, Cost) if cost.stage == "judge"]
    judge_costs = tabulate_judge_costs({"judge": costs})
    html = build_evaluation_page(results, settings, lineage.VIEWER, judge_costs)
    texts = {
        lineage.CONFIG: settings,
        lineage.TABLE: to_markdown(results),
        lineage.CSV: to_csv(results),
        lineage.LATEX: to_latex(results),
        lineage.FIGURES: json.dumps(make_plain_figures(results), indent=1) + "\n",
        lineage.PAGE: html,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return html
