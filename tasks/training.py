"""The tasks that train: base model, fine-tuning on demonstrations, and rounds of reinforcement, one or several."""

from typing import NamedTuple

from flytekit import Deck
from flytekit.types.file import FlyteFile

from steptool.artifacts.lineage import METRICS
from steptool.artifacts.metrics import Stopwatch, Ticker, count_metrics, say
from steptool.config import Config
from steptool.storage.transfer import localize
from tasks.runtime.artifacts import (
    Checkpoints,
    Model,
    Parquet,
    Tasks,
    discard,
    download,
    make_folder,
    runs_locally,
    write_costs,
)
from tasks.runtime.profile import profile
from tasks.runtime.stage import stage


class PrepareOutputs(NamedTuple):
    """The base model and the part of the data that fits it.

    The tasks whose prompts fit its context, their queries, the demonstrations with their tokens, the quarantine with
    those that were left out, its counts as metrics, and what it cost.
    """

    model: Model
    tasks: Tasks
    queries: Parquet
    lessons: Parquet
    quarantine: FlyteFile
    metrics: Parquet
    costs: Parquet


class WarmStartOutputs(NamedTuple):
    """The model to start from, the metrics of its training, and what it cost."""

    model: Model
    metrics: Parquet
    costs: Parquet


@stage("prepare", cached=True)
def prepare(config: Config, queries: Parquet, demonstrations: Parquet, quarantine: FlyteFile) -> PrepareOutputs:
    """Start a session for each task, put the base model in place, try it, and encode the demonstrations.

    Prompts have to fit the model's context. Demonstrations that the model cannot learn from are counted and put into
    the quarantine.
    """
    watch = Stopwatch("prepare")
    from steptool.artifacts.lineage import sign
    from steptool.environments.base import check_queries
    from steptool.pipeline.episodes import TaskSet
    from steptool.pipeline.preparation import prepare as prepare_model
    from steptool.policies.catalog import open_environment_of
    from steptool.records import Metric, Query, Trajectory
    from steptool.records.episodes import read_queries
    from steptool.records.tables import read_records, write_records

    local_config = localize(config, make_folder("fetched"), "policy.base", "tools.toolbench.cache")
    all_queries, trajectories = read_queries(download(queries)), read_records(download(demonstrations), Trajectory)
    with open_environment_of(all_queries, local_config, trajectories) as environment:
        check_queries(environment, all_queries)
    machines = None if runs_locally() else profile().list_machines()
    preparation = prepare_model(
        all_queries, trajectories, local_config, make_folder("base"), is_local=runs_locally(), machines=machines
    )
    sign(preparation.model, None, "base", [], note=config.policy.base)
    target, lessons = make_folder("prepared"), preparation.lessons
    query_counts = {"queries": len(preparation.queries), "left out": len(all_queries) - len(preparation.queries)}
    counts = count_metrics("prepare", {**query_counts, **lessons.counts()})
    fitting = write_records(target / "queries.parquet", preparation.queries, Query)
    tasks = TaskSet.write(target / "tasks", fitting, download(demonstrations), config)
    return PrepareOutputs(
        Model(str(preparation.model)),
        Tasks(str(tasks.folder)),
        Parquet(str(fitting)),
        Parquet(str(write_records(target / "lessons.parquet", lessons.encoded, Trajectory))),
        FlyteFile(str(lessons.add_to_quarantine(download(quarantine), target / "quarantine.jsonl"))),
        Parquet(str(write_records(target / METRICS, counts, Metric))),
        write_costs(target, watch.measure_cost()),
    )


@stage("warm_start", cached=True)
def warm_start(config: Config, base: Model, queries: Parquet, lessons: Parquet) -> WarmStartOutputs:
    """Fine-tune the base model on the demonstrations, whose tokens `prepare` has made."""
    watch = Stopwatch("warm_start")
    from steptool.artifacts.lineage import sign
    from steptool.pipeline.tracking import track_updates
    from steptool.records import Metric, Trajectory
    from steptool.records.tables import read_records, write_records
    from steptool.training.warm_start import count_tokens
    from steptool.training.warm_start import warm_start as fine_tune

    start, folder = download(base), make_folder("warm_start")
    examples = read_records(download(lessons), Trajectory)
    say("warm_start", f"{config.warm_start.steps} steps on {len(examples)} demonstrations")
    ticker = Ticker("warm_start", config.warm_start.steps, "steps")
    checkpoints = Checkpoints("warm_start")
    metrics = fine_tune(
        start,
        examples,
        config.warm_start,
        config.policy,
        config.seed,
        folder,
        tokens_per_pass=config.ppo.tokens_per_pass,
        gradient_checkpointing=config.ppo.gradient_checkpointing,
        moments=config.ppo.moments,
        sharding=config.ppo.sharding,
        on_step=ticker,
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    checkpoints.remove()
    sign(folder, start, "warm_start", [download(queries), download(lessons)])
    cost = watch.measure_cost(count_tokens(examples, config.warm_start))
    track_updates(metrics, config)
    figures = make_folder("figures")
    say("warm_start", "finished", seconds=cost.seconds)
    return WarmStartOutputs(
        Model(str(folder)),
        Parquet(str(write_records(figures / METRICS, metrics, Metric))),
        write_costs(figures, cost),
    )


class PpoOutputs(NamedTuple):
    """The next policy, the advantages that it learned from, the metrics of its training, what the whole round cost,
    and the running scale of rewards for the next round."""

    model: Model
    advantages: Parquet
    metrics: Parquet
    costs: Parquet
    scale: FlyteFile


@stage("ppo", cached=True)
def ppo(
    round_index: int,
    config: Config,
    policy: Model,
    reference: Model,
    trajectories: Parquet,
    rewards: Parquet,
    costs: Parquet,
    scale: FlyteFile | None,
) -> PpoOutputs:
    """Train the policy on its own episodes of this round.

    `costs` are those of the episodes and of their rewards. The first round has no running scale to start from.
    """
    from steptool.pipeline.episodes import AuditedRound
    from steptool.pipeline.learning import learn_round

    checkpoints = Checkpoints("ppo")
    result = learn_round(
        download(policy),
        download(reference),
        AuditedRound(download(trajectories), download(rewards), download(costs)),
        config,
        round_index,
        download(scale) if scale else None,
        make_folder("round"),
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    checkpoints.remove()
    discard(download(policy), download(reference))
    return PpoOutputs(
        Model(str(result.model)),
        Parquet(str(result.advantages)),
        Parquet(str(result.metrics)),
        Parquet(str(result.costs)),
        FlyteFile(str(result.scale)),
    )


class RoundsTogetherOutputs(NamedTuple):
    """The policy and the running scale after the last round, and by round the files that stages in pods return."""

    model: Model
    scale: FlyteFile
    trajectories: list[Parquet]
    rewards: list[Parquet]
    advantages: list[Parquet]
    metrics: list[Parquet]
    costs: list[Parquet]


def _show(name: str, page: str) -> None:
    Deck(name, page)


@stage("rounds_together", cached=True)
def rounds_together(
    first: int,
    count: int,
    config: Config,
    policy: Model,
    start: Model,
    tasks: Tasks,
    queries: Parquet,
    scale: FlyteFile | None,
) -> RoundsTogetherOutputs:
    """Play, annotate, audit and learn from `count` rounds, the first of which has the index `first`."""
    from steptool.pipeline.episodes import TaskSet
    from steptool.pipeline.learning import RoundInputs, play_and_learn

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache", "rewards.audit.previous")
    checkpoints = Checkpoints("rounds_together")
    results = play_and_learn(
        RoundInputs(download(start), TaskSet(download(tasks)), download(queries), config),
        first,
        count,
        download(policy),
        download(scale) if scale else None,
        checkpoints.folder,
        on_checkpoint=checkpoints.save,
        show=_show,
    )
    checkpoints.remove(checkpoints.folder)  # because the results are in it
    discard(download(policy), download(start))
    last = results[-1].learned
    return RoundsTogetherOutputs(
        Model(str(last.model)),
        FlyteFile(str(last.scale)),
        [Parquet(str(result.audited.trajectories)) for result in results],
        [Parquet(str(result.audited.rewards)) for result in results],
        [Parquet(str(result.learned.advantages)) for result in results],
        [Parquet(str(result.learned.metrics)) for result in results],
        [Parquet(str(result.learned.costs)) for result in results],
    )
