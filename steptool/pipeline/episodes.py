"""Episodes of the model that learns and of the policies that are evaluated, and a page to read them.

A round of reinforcement works on files up to the learning: it plays the shards, scores them, joins and audits them;
`learning.learn_round` follows. Pods call these functions one by one, and `together.play_and_learn` in turn.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steptool.artifacts import lineage
from steptool.artifacts.metrics import Stopwatch, Ticker, format_rate, say
from steptool.config import Config, EvaluatedPolicy
from steptool.data.ingest import ingest
from steptool.data.recordings.forms import policy_recordings
from steptool.evaluation.measures import PolicyEvaluation, evaluate_policy
from steptool.policies.catalog import open_environment_of, open_policy
from steptool.records import Cost, Query, StepReward, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import concatenate, read_records, write_records
from steptool.report.rewards_page import rewards_page
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles
from steptool.rewards.annotators import annotate_file, annotator_counts, missing_reasons, open_annotator
from steptool.rewards.audit import audit_files, check_thresholds
from steptool.rollout import runner
from steptool.rollout.runner import Policy
from steptool.rollout.schedule import TaskSet
from steptool.storage.remote import localize

if TYPE_CHECKING:
    from steptool.models.load import LoadModel
    from steptool.policies.vllm import RestingEngine

Place = str | os.PathLike[str]
FETCHED = ("data.paths", "data.recorded_answers", "policy.base", "tools.toolbench.cache")
"""Fields of a configuration that may name urls."""


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
    """Sample an episode of each query with an open policy; otherwise as `roll_out`."""
    ticker = Ticker("rollout", len(queries), "episodes")
    with open_environment_of(queries, config, recordings) as environment:
        played = runner.roll_out(
            policy, queries, environment, round_index=round_index, limits=config.tools, progress=ticker
        )
    return [episode.trajectory for episode in played]


def evaluate(
    policy: EvaluatedPolicy | Place,
    queries: Sequence[Query],
    config: Config,
    *,
    recordings: Sequence[Trajectory] = (),
) -> PolicyEvaluation:
    """Play the queries once greedily, and as often sampled as configured. A playback plays them only once.

    `policy` is a policy of a configuration, or the folder or Hub id of a model. A replaying environment takes its
    answers from the `recordings`. A playback plays the `recordings` too, unless it names others.
    """
    if not isinstance(policy, EvaluatedPolicy):
        policy = EvaluatedPolicy(name=Path(policy).name, model=os.fspath(policy))
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as fetched:
        own = policy_recordings(policy, queries, config, Path(fetched))
    with (
        open_environment_of(queries, config, recordings) as environment,
        open_policy(policy, config, own or recordings) as opened,
    ):
        result = evaluate_policy(
            opened,
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
    queries, recordings = tasks.round_queries(config, round_index, shard), tasks.recordings()
    episodes = play(policy, queries, config, round_index=round_index, recordings=recordings)
    result = f"shard {shard + 1} of {config.rollout.shards}, {format_rate([t.solved for t in episodes])}"
    say("rollout", result, round_index=round_index, rounds=config.ppo.rounds)
    if errors := [t.check_error for t in episodes if t.check_error]:
        failed = f"the check failed on {len(errors)} of {len(episodes)} episodes, first: {errors[0]}"
        say("rollout", failed, round_index=round_index, rounds=config.ppo.rounds)
    write_records(folder / EPISODES, episodes, Trajectory)
    write_costs(folder, watch.cost(sum(t.action_tokens for t in episodes)))
    return folder


def score_file(trajectories: Path, queries: Path, config: Config, round_index: int, folder: Path) -> Path:
    """Score the steps of a file of trajectories into a folder, with the costs; returns the folder."""
    watch = Stopwatch("annotate", round_index)
    with open_annotator(config.rewards.annotator, config.rewards.judge) as annotator:
        annotate_file(queries, trajectories, annotator, folder / REWARDS)
        write_costs(folder, watch.cost(counts=annotator_counts(annotator)))
        if reasons := missing_reasons(annotator):
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
        concatenate([s / EPISODES for s in shards], Trajectory, folder / lineage.of_round("trajectories", round_index)),
        concatenate([s / REWARDS for s in scores], StepReward, folder / lineage.of_round("rewards", round_index)),
        concatenate([s / lineage.COSTS for s in (*shards, *scores)], Cost, folder / lineage.COSTS),
    )
    result = audit_files(queries, audited.trajectories, audited.rewards, config)
    show(rewards_page(result, f"The rewards of round {round_index + 1}"))
    check_thresholds(result, config.rewards.audit, f"round {round_index + 1}")
    return audited


def write_costs(folder: Path, *costs: Cost) -> Path:
    """Write costs into a folder, under their usual name."""
    return write_records(folder / lineage.COSTS, costs, Cost)
