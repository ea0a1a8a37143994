"""Episodes of the model that learns and of policies that are evaluated: the tasks, the rounds, and a page to read them.

The queries of a shard follow from the configuration's seed, so that a shard that is run again draws the same. A round
of reinforcement works on files up to the learning: it plays the shards, scores them, joins and audits them;
`learning.learn_round` follows. A pod calls one of these functions, and `learning.play_and_learn` calls all of them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pyarrow.parquet as pq

from steptool.artifacts import lineage
from steptool.artifacts.metrics import Stopwatch, Ticker, format_rate, say
from steptool.config import Config, EvaluatedPolicy, EvaluationConfig
from steptool.config.base import ConfigError
from steptool.data.ingest import ingest
from steptool.data.recordings.forms import find_policy_recordings
from steptool.data.splits import select_shard_positions
from steptool.environments.base import find_environment_class
from steptool.evaluation.measures import PolicyEvaluation, evaluate_policy, find_verdict
from steptool.policies.catalog import open_environment_of, open_policy
from steptool.records import Cost, Query, StepReward, Trajectory
from steptool.records.columns import from_row
from steptool.records.episodes import read_queries
from steptool.records.tables import concatenate, read_records, read_table, write_records
from steptool.report.rewards_page import build_rewards_page
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles
from steptool.rewards.annotators import annotate_file, describe_missing_scores, get_annotator_counts, open_annotator
from steptool.rewards.audit import audit_files, check_thresholds
from steptool.rollout import runner
from steptool.rollout.runner import Policy
from steptool.storage.transfer import localize

if TYPE_CHECKING:
    from steptool.models.load import LoadModel
    from steptool.policies.vllm import RestingEngine


_RECORDINGS = "recordings.parquet"
Place = str | os.PathLike[str]
FETCHED = ("data.paths", "data.recorded_answers", "policy.base", "tools.toolbench.cache")
"""Fields of a configuration that may name urls."""


class TaskSet:
    """A folder with the queries that are played and, where something answers from them, with recorded trajectories.

    An environment that replays, a policy that plays back and an evaluation of recorded queries alone need recordings.
    Without any of these the folder holds the queries alone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def write(cls, folder: str | Path, queries: Path, demonstrations: Path, config: Config) -> TaskSet:
        """Copy the file of queries into a new folder and, if the configuration needs them, that of demonstrations."""
        tasks = cls(folder)
        tasks.folder.mkdir(parents=True)
        shutil.copyfile(queries, tasks.folder / lineage.QUERIES)
        if _needs_recordings(queries, config):
            shutil.copyfile(demonstrations, tasks.folder / _RECORDINGS)
        return tasks

    def read_recordings(self) -> list[Trajectory]:
        """The recorded trajectories; empty where nothing needs them."""
        path = self.folder / _RECORDINGS
        return read_records(path, Trajectory) if path.exists() else []

    def read_evaluation_queries(self, settings: EvaluationConfig) -> list[Query]:
        """The queries that an evaluation plays. Raises ValueError if no query is left."""
        queries = read_queries(self.folder / lineage.QUERIES, None if settings.split == "all" else settings.split)
        if settings.recorded_only:
            recorded_ids = {t.query_id for t in self.read_recordings()}
            queries = [q for q in queries if q.query_id in recorded_ids]
        if not queries:
            raise ValueError(
                f"evaluation.recorded_only: no query of the split '{settings.split}' has a recorded answer; "
                "name recordings in data.recorded_answers"
            )
        return queries

    def read_round_queries(self, config: Config, round_index: int, shard: int) -> list[Query]:
        """The training queries of one shard of a round, one for each episode. Only these are parsed.

        With `rollout.samples_per_query` each query comes that many times in a row, all in one shard.
        """
        table = read_table(self.folder / lineage.QUERIES, Query)
        train = table.filter(pc.equal(table["split"], "train"))
        rollout, tries = config.rollout, config.rollout.samples_per_query
        positions = select_shard_positions(
            train.num_rows, rollout.episodes // tries, round_index, config.seed, shard=shard, shards=rollout.shards
        )
        return [query for row in train.take(positions).to_pylist() for query in [from_row(row, Query)] * tries]


def _needs_recordings(queries: Path, config: Config) -> bool:
    """Whether anything answers from recorded trajectories: an environment of the queries, or the evaluation."""
    evaluation = config.evaluation
    if evaluation.recorded_only or any(p.kind == "playback" and not p.recordings for p in evaluation.policies):
        return True
    names = pq.read_table(queries, columns=["environment"])["environment"].unique().to_pylist()
    return any(find_environment_class(name, config).needs_recordings for name in names)


def roll_out(
    model: Place,
    queries: Sequence[Query],
    config: Config,
    *,
    base: Place = "",
    round_index: int = 0,
    recordings: Sequence[Trajectory] = (),
) -> list[Trajectory]:
    """Sample an episode of each query with the model of a folder or Hub id, as a round of training does.

    `base` is the model of an adapter, if `model` is an adapter folder. A replaying environment takes its answers
    from the `recordings`. Raises ValueError unless the queries name one environment.
    """
    with open_learner(model, base, config, round_index) as policy:
        return play(policy, queries, config, round_index=round_index, recordings=recordings)


@contextmanager
def open_learner(
    model: Place,
    base: Place,
    config: Config,
    round_index: int,
    load: LoadModel | None = None,
    resting: RestingEngine | None = None,
) -> Iterator[Policy]:
    """Open the policy of a round, and close it in the end.

    `base` is the model of an adapter, as in `roll_out`. `load` and `resting` are those of `open_policy`.
    """
    learner = EvaluatedPolicy(name=f"round_{round_index:02d}", model=os.fspath(model), base=os.fspath(base))
    with open_policy(learner, config, load=load, resting=resting) as policy:
        yield policy


def play(
    policy: Policy,
    queries: Sequence[Query],
    config: Config,
    *,
    round_index: int = 0,
    recordings: Sequence[Trajectory] = (),
) -> list[Trajectory]:
    """Sample an episode of each query with an open policy; otherwise as `roll_out`.

    Raises ConfigError where `credit.state: digest` needs the states of an environment that does not name them.
    """
    ticker = Ticker("rollout", len(queries), "episodes")
    compares_states = config.credit.state == "digest"
    with open_environment_of(queries, config, recordings) as environment:
        episodes = runner.roll_out(
            policy,
            queries,
            environment,
            round_index=round_index,
            limits=config.tools,
            digests=compares_states or config.rewards.contribution == "progress",
            progress=ticker,
        )
    if compares_states and any(step.state is None for e in episodes for step in e.trajectory.steps):
        raise ConfigError(
            "credit.state: digest needs an environment that names its states, and that of the queries "
            f"('{queries[0].environment}') does not: give its session, or the object of your functions, a method "
            "`state_digest`, or set credit.state to calls or observation"
        )
    return [episode.trajectory for episode in episodes]


def evaluate(
    policy: EvaluatedPolicy | Place,
    queries: Sequence[Query],
    config: Config,
    *,
    recordings: Sequence[Trajectory] = (),
) -> PolicyEvaluation:
    """Play the queries once greedily, and sampled as often as configured. A playback plays them only once.

    `policy` is a policy of a configuration, or the folder or Hub id of a model. A replaying environment takes its
    answers from the `recordings`. A playback plays the `recordings` too, unless it names others.
    """
    if not isinstance(policy, EvaluatedPolicy):
        policy = EvaluatedPolicy(name=Path(policy).name, model=os.fspath(policy))
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as folder:
        policy_recordings = find_policy_recordings(policy, queries, config, Path(folder))
    with (
        open_environment_of(queries, config, recordings) as environment,
        open_policy(policy, config, policy_recordings or recordings) as opened_policy,
    ):
        result = evaluate_policy(
            opened_policy,
            queries,
            environment,
            sampled_repeats=0 if policy.kind == "playback" else config.evaluation.sampled_repeats,
            limits=config.tools,
            progress=lambda decoding: Ticker("evaluate", len(queries), f"{decoding} episodes of {policy.name}"),
        )
    _report(result, policy.name, len(queries))
    return result


def view(
    queries: Sequence[Query],
    trajectories: Sequence[Trajectory],
    target: Place,
    *,
    rewards: Sequence[StepReward] = (),
    title: str = "Trajectories",
) -> Path:
    """Write one HTML file in which the trajectories can be searched and read, with the scores of their steps."""
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        queries_file = write_records(folder / "queries.parquet", queries, Query)
        episodes = write_records(folder / "trajectories.parquet", trajectories, Trajectory)
        scores = write_records(folder / "rewards.parquet", rewards, StepReward) if rewards else None
        return write_viewer(target, queries_file, [EpisodeFiles(episodes, scores)], title)


def serve_tasks(config: Config, host: str, port: int) -> None:
    """Serve the environment and all tasks of a configuration behind OpenEnv's protocol, until the process ends.

    Raises what reading the data and opening the environment raise, and ConfigError for an address that others reach
    without a key.
    """
    from steptool.policies.serve_environment import ServedEnvironment, serve

    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        config = localize(config, folder / "fetched", *FETCHED)
        data = ingest(config, folder / "data", for_training=False)
        queries = read_queries(data.queries_path)
        recordings = read_records(data.demonstrations_path, Trajectory)
        with open_environment_of(queries, config, recordings) as environment:
            serve(ServedEnvironment(environment, queries, config.tools, config.rollout.max_steps), host, port)


def _report(result: PolicyEvaluation, name: str, queries: int) -> None:
    """Say how often the policy passed, and what went wrong."""
    say("evaluate", f"{name}: {format_rate(result.greedy_verdicts)} on {queries} queries")
    if errors := result.check_errors:
        say("evaluate", f"the check failed on {len(errors)} episodes of {name}, first: {errors[0]}")
    if refusals := result.refusals:
        say("evaluate", f"the endpoint ended {len(refusals)} episodes of {name}, first: {refusals[0]}")


EPISODES, REWARDS = "trajectories.parquet", "rewards.parquet"
"""The files of a shard, beside its costs."""


@dataclass(frozen=True)
class AuditedRound:
    """The episodes of a round, the rewards to learn from and what both cost, each in one file."""

    trajectories: Path
    rewards: Path
    costs: Path


def play_shard(
    policy: Policy, tasks: TaskSet, config: Config, round_index: int, shard: int, folder: Path, watch: Stopwatch
) -> Path:
    """Sample a shard of a round's episodes into a folder, with what `watch` says they cost; returns the folder."""
    queries, recordings = tasks.read_round_queries(config, round_index, shard), tasks.read_recordings()
    episodes = play(policy, queries, config, round_index=round_index, recordings=recordings)
    by_id = {query.query_id: query for query in queries}
    verdicts = [find_verdict(by_id[episode.query_id], episode)[0] for episode in episodes]
    result = f"shard {shard + 1} of {config.rollout.shards}, {format_rate(verdicts)}"
    say("rollout", result, round_index=round_index, rounds=config.ppo.rounds)
    if errors := [t.check_error for t in episodes if t.check_error]:
        problem = f"the check failed on {len(errors)} of {len(episodes)} episodes, first: {errors[0]}"
        say("rollout", problem, round_index=round_index, rounds=config.ppo.rounds)
    write_records(folder / EPISODES, episodes, Trajectory)
    write_costs(folder, watch.measure_cost(sum(t.action_tokens for t in episodes)))
    return folder


def score_file(trajectories: Path, queries: Path, config: Config, round_index: int, folder: Path) -> Path:
    """Score the steps of a file of trajectories into a folder, with the costs; returns the folder."""
    watch = Stopwatch("annotate", round_index)
    with open_annotator(config.rewards.annotator, config.rewards.judge) as annotator:
        annotate_file(queries, trajectories, annotator, folder / REWARDS)
        write_costs(folder, watch.measure_cost(counts=get_annotator_counts(annotator)))
        if reasons := describe_missing_scores(annotator):
            say("annotate", f"votes are missing: {reasons}", round_index=round_index)
    return folder


def audit_round(
    shards: Sequence[Path],
    scores: Sequence[Path],
    queries: Path,
    config: Config,
    round_index: int,
    folder: Path,
    show: Callable[[str], None],
) -> AuditedRound:
    """Join the shards of a round in a folder, and `show` the page of the audit of its rewards.

    Raises AuditError where the rewards are beyond a threshold.
    """
    audited = AuditedRound(
        concatenate(
            [s / EPISODES for s in shards], Trajectory, folder / lineage.name_round_file("trajectories", round_index)
        ),
        concatenate(
            [s / REWARDS for s in scores], StepReward, folder / lineage.name_round_file("rewards", round_index)
        ),
        concatenate([s / lineage.COSTS for s in (*shards, *scores)], Cost, folder / lineage.COSTS),
    )
    result = audit_files(queries, audited.trajectories, audited.rewards, config)
    show(build_rewards_page(result, f"The rewards of round {round_index + 1}"))
    check_thresholds(result, config.rewards.audit, f"round {round_index + 1}")
    return audited


def write_costs(folder: Path, *costs: Cost) -> Path:
    """Write costs into a folder, under their usual name."""
    return write_records(folder / lineage.COSTS, costs, Cost)
