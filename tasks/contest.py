"""Any number of policies on the same queries."""

import json
import shutil
from typing import NamedTuple

import yaml
from flytekit import Deck
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.progress import Stopwatch, Ticker, rate, say
from steptool.config import Config
from steptool.contracts.columns import Row
from steptool.storage.remote import fetched, localize
from tasks.runtime.artifacts import Parquet, download, make_folder
from tasks.runtime.stage import stage


class Judged(NamedTuple):
    """A judge's verdicts on the episodes, and its preferences between those of two policies."""

    verdicts: Parquet
    preferences: Parquet


class Compared(NamedTuple):
    """The page, the table in Markdown, the figures of metrics.json, the rows behind them, and the episodes to read."""

    page: FlyteFile
    table: FlyteFile
    figures: FlyteFile
    rows: Parquet
    viewer: FlyteFile


@stage("contest", cached=True)
def contest(policy: int, config: Config, queries: Parquet, demonstrations: Parquet) -> FlyteDirectory:
    """Play the queries with one of the configured policies: greedily once and sampled as often as configured.

    What is played back has nothing to sample.
    """
    watch = Stopwatch("evaluate")
    from steptool.artifacts import layout as names
    from steptool.contracts.tables import write_records, write_rows
    from steptool.data.recordings.matching import policy_recordings
    from steptool.evaluation.metrics import evaluate
    from steptool.policies.catalog import open_environment_of, open_policy
    from steptool.records import Evaluation, Trajectory
    from steptool.rollout.runner import roll_out
    from steptool.rollout.schedule import evaluation_queries
    from steptool.rollout.turns import Decoding

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    chosen, settings = config.evaluation.policies[policy], config.evaluation
    asked = evaluation_queries(download(queries), download(demonstrations), settings)
    if chosen.model != "embedded":
        chosen = chosen.model_copy(update={"model": str(fetched(chosen.model, make_folder("model")))})
    recorded = policy_recordings(chosen, asked, download(demonstrations), config, make_folder("recordings"))
    folder, rows, episodes = make_folder("contest"), [], []
    with (
        open_environment_of(asked, download(demonstrations), config) as environment,
        open_policy(chosen, config, recorded) as player,
    ):
        for number in range(1 if chosen.kind == "playback" else 1 + settings.sampled_repeats):
            decoding, repeat = (Decoding.SAMPLED, number - 1) if number else (Decoding.GREEDY, 0)
            ticker = Ticker("evaluate", len(asked), f"{decoding} episodes of {chosen.name}")
            played = roll_out(
                player, asked, environment, decoding=decoding, sample=number, limits=config.tools, progress=ticker
            )
            trajectories = [episode.trajectory for episode in played]
            costs = {episode.trajectory.trajectory_id: episode.cost for episode in played}
            rows += evaluate(asked, trajectories, chosen.name, str(decoding), repeat, costs)
            episodes += trajectories
            refusals = [episode.refusal for episode in played if episode.refusal]
            if refusals:
                say(
                    "evaluate", f"{len(refusals)} episodes of {chosen.name} ended by the endpoint, first: {refusals[0]}"
                )
    write_rows(folder / names.EVALUATED, rows, Evaluation, watch.cost(sum(row["tokens"] for row in rows)))
    write_records(folder / names.of_policy(chosen.name), episodes, Trajectory)
    say("evaluate", f"{chosen.name}: {rate([r['passed'] for r in rows if r['decoding'] == 'greedy'])} on {len(asked)}")
    return FlyteDirectory(str(folder))


@stage("judge", cached=True)
def judge(config: Config, queries: Parquet, played: list[FlyteDirectory]) -> Judged:
    """Read the stored verdicts and, if so configured, ask the judge about the greedy episodes."""
    watch = Stopwatch("judge")
    from steptool.artifacts import layout as names
    from steptool.artifacts.queries import read_queries
    from steptool.contracts.tables import read_records, write_rows
    from steptool.judge.outcome_judge import judge_outcomes
    from steptool.judge.verdicts import read_verdicts
    from steptool.records import Preference, Trajectory, Verdict

    files = localize(config, make_folder("fetched"), "evaluation.verdicts").evaluation.verdicts
    verdicts, preferences = read_verdicts(files), list[Row]()
    counts: dict[str, float] = {}
    if config.evaluation.judged:
        queries_by_id, episodes = {q.query_id: q for q in read_queries(download(queries))}, {}
        for policy, folder in zip(config.evaluation.policies, map(download, played), strict=True):
            every = read_records(folder / names.of_policy(policy.name), Trajectory)
            episodes[policy.name] = [t for t in every if t.sample == 0]
        outcomes = judge_outcomes(config.rewards.judge, queries_by_id, episodes)
        verdicts, preferences, counts = verdicts + outcomes.verdicts, outcomes.preferences, outcomes.counts
        say("judge", f"{len(outcomes.verdicts)} verdicts, {len(preferences)} preferences")
    folder = make_folder("judged")
    return Judged(
        Parquet(str(write_rows(folder / names.VERDICTS, verdicts, Verdict, watch.cost(counts=counts)))),
        Parquet(str(write_rows(folder / names.PREFERENCES, preferences, Preference))),
    )


@stage("compare")
def compared(
    config: Config,
    output: str,
    queries: Parquet,
    played: list[FlyteDirectory],
    verdicts: Parquet,
    preferences: Parquet,
) -> Compared:
    """Compare the policies, and put tables, page and episodes in place of `output` if it is given."""
    from steptool.artifacts import layout as names
    from steptool.contracts.tables import concatenate, read_costs, read_rows
    from steptool.evaluation.table import figures, frame, results, to_latex, to_markdown
    from steptool.records import Evaluation, Preference, Verdict
    from steptool.report.evaluation_page import evaluation_page
    from steptool.report.judge_costs import tabulate_judge_costs
    from steptool.report.viewer import EpisodeFiles, write_viewer

    run, parts = make_folder("evaluation"), [download(part) for part in played]
    episodes = {file.name: file for part in parts for file in part.glob(names.of_policy("*"))}
    tables = {
        names.QUERIES: download(queries),
        names.VERDICTS: download(verdicts),
        names.PREFERENCES: download(preferences),
    }
    for name, file in {**tables, **episodes}.items():
        shutil.copyfile(file, run / name)
    concatenate([part / names.EVALUATED for part in parts], Evaluation, run / names.EVALUATED)
    found = results(
        read_rows(run / names.EVALUATED, Evaluation),
        read_rows(run / names.VERDICTS, Verdict),
        read_rows(run / names.PREFERENCES, Preference),
        config.evaluation.bootstrap,
        config.seed,
    )
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    shown = [
        EpisodeFiles(run / names.of_policy(p.name), evaluations=run / names.EVALUATED)
        for p in config.evaluation.policies
    ]
    write_viewer(run / names.VIEWER, run / names.QUERIES, shown, "Episodes of the evaluation")
    costs = tabulate_judge_costs({"judge": read_costs(run / names.VERDICTS)})
    html, table = evaluation_page(found, settings, names.VIEWER, costs), to_markdown(found)
    texts = {
        names.CONFIG: settings,
        names.TABLE: table,
        names.CSV: frame(found).to_csv(index=False),
        names.LATEX: to_latex(found),
        names.FIGURES: json.dumps(figures(found), indent=1) + "\n",
        names.PAGE: html,
    }
    for name, text in texts.items():
        (run / name).write_text(text, encoding="utf-8")
    Deck("evaluation", html)
    place = str(run)
    if output:
        names.publish(run, output, names.EVALUATION_MARKS)
        place = output.rstrip("/")
    print(f"\n{table}\npage: {place}/{names.PAGE}", flush=True)
    return Compared(
        FlyteFile(f"{place}/{names.PAGE}"),
        FlyteFile(f"{place}/{names.TABLE}"),
        FlyteFile(f"{place}/{names.FIGURES}"),
        Parquet(f"{place}/{names.EVALUATED}"),
        FlyteFile(f"{place}/{names.VIEWER}"),
    )
