"""The tasks that evaluate policies: a trained model and every policy that an evaluation names play, a judge gives its
verdicts, and the policies are compared."""

from typing import TYPE_CHECKING, NamedTuple

from flytekit import Deck
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import Stopwatch, say_results
from steptool.config import Config, EvaluatedPolicy
from steptool.records import Evaluation
from steptool.records.tables import write_records
from steptool.storage.transfer import fetch, localize
from tasks.runtime.artifacts import Model, Parquet, Tasks, download, download_policy, make_folder, write_costs
from tasks.runtime.stage import stage

if TYPE_CHECKING:  # its imports take seconds
    from steptool.evaluation.measures import PolicyEvaluation


class EvaluateOutputs(NamedTuple):
    """One row per query and repeat, the episodes behind them, and what they cost."""

    rows: Parquet
    greedy: Parquet
    sampled: Parquet
    costs: Parquet


@stage("evaluate", cached=True)
def evaluate(name: str, config: Config, model: Model, base: Model, tasks: Tasks) -> EvaluateOutputs:
    """Play the held-out queries with a model, greedily once and sampled as often as configured.

    `base` is the base model of an adapter, if `model` is an adapter.
    """
    watch = Stopwatch("evaluate")
    from steptool.pipeline.tracking import track_evaluation
    from steptool.records import Trajectory

    folder, base_folder = download_policy(model, base)
    policy = EvaluatedPolicy(name=name, model=str(folder), base=str(base_folder))
    result = _evaluate(policy, config, tasks)
    track_evaluation(name, result.rows, config)
    target = make_folder("evaluate")
    return EvaluateOutputs(
        Parquet(str(write_records(target / "evaluations.parquet", result.rows, Evaluation))),
        Parquet(str(write_records(target / "greedy.parquet", result.greedy, Trajectory))),
        Parquet(str(write_records(target / "sampled.parquet", result.sampled, Trajectory))),
        write_costs(target, watch.measure_cost(result.tokens)),
    )


@stage("evaluate_policy", cached=True)
def evaluate_policy(policy: int, config: Config, tasks: Tasks) -> FlyteDirectory:
    """Play the queries with the policy of this number in the configuration.

    The folder holds its rows of Evaluation, all its episodes and what they cost.
    """
    watch = Stopwatch("evaluate")
    from steptool.artifacts import lineage as names
    from steptool.pipeline.tracking import track_evaluation
    from steptool.records import Trajectory

    policy_config = config.evaluation.policies[policy]
    for field in ("model", "base"):
        if (place := getattr(policy_config, field)) not in ("", "embedded"):
            policy_config = policy_config.model_copy(update={field: str(fetch(place, make_folder(field)))})
    result = _evaluate(policy_config, config, tasks)
    track_evaluation(policy_config.name, result.rows, config)
    folder = make_folder("evaluate_policy")
    write_records(folder / names.EVALUATED, result.rows, Evaluation)
    write_costs(folder, watch.measure_cost(result.tokens))
    write_records(folder / names.name_policy_file(policy_config.name), [*result.greedy, *result.sampled], Trajectory)
    return FlyteDirectory(str(folder))


def _evaluate(policy: EvaluatedPolicy, config: Config, tasks: Tasks) -> "PolicyEvaluation":
    from steptool.pipeline.episodes import TaskSet
    from steptool.pipeline.episodes import evaluate as play

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    task_set = TaskSet(download(tasks))
    return play(
        policy, task_set.read_evaluation_queries(config.evaluation), config, recordings=task_set.read_recordings()
    )


class JudgeOutputs(NamedTuple):
    """A judge's verdicts on the episodes, its preferences between those of two policies, and what both cost."""

    verdicts: Parquet
    preferences: Parquet
    costs: Parquet


class CompareOutputs(NamedTuple):
    """The page, the table in Markdown, the figures of metrics.json, the rows behind them, and the viewer."""

    page: FlyteFile
    table: FlyteFile
    figures: FlyteFile
    rows: Parquet
    viewer: FlyteFile


@stage("judge", cached=True)
def judge(config: Config, queries: Parquet, evaluations: list[FlyteDirectory]) -> JudgeOutputs:
    """Read the stored verdicts and, if so configured, ask the judge about the greedy episodes."""
    watch = Stopwatch("judge")
    from steptool.artifacts import lineage as names
    from steptool.pipeline.folders import judge_episodes
    from steptool.records import Preference, Verdict
    from steptool.records.tables import write_records

    config = localize(config, make_folder("fetched"), "evaluation.verdicts")
    judgement = judge_episodes(download(queries), [download(part) for part in evaluations], config)
    target = make_folder("judged")
    return JudgeOutputs(
        Parquet(str(write_records(target / names.VERDICTS, judgement.verdicts, Verdict))),
        Parquet(str(write_records(target / names.PREFERENCES, judgement.preferences, Preference))),
        write_costs(target, watch.measure_cost(counts=judgement.counts)),
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
) -> CompareOutputs:
    """Compare the policies, and put tables, page and episodes in place of `output` if it is given."""
    from steptool.artifacts import lineage as names
    from steptool.pipeline.folders import write_comparison
    from steptool.pipeline.tracking import track_results
    from steptool.storage.transfer import deliver_folder

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
    place = deliver_folder(folder, output, names.EVALUATION)
    track_results(pages.table, {name: f"{place}/{name}" for name in (names.PAGE, names.FIGURES, names.VIEWER)}, config)
    say_results("compare", pages.table, {"page": f"{place}/{names.PAGE}"})
    return CompareOutputs(
        FlyteFile(f"{place}/{names.PAGE}"),
        FlyteFile(f"{place}/{names.TABLE}"),
        FlyteFile(f"{place}/{names.FIGURES}"),
        Parquet(f"{place}/{names.EVALUATED}"),
        FlyteFile(f"{place}/{names.VIEWER}"),
    )
