"""One round of reinforcement by files, up to the learning: play the shards, score them, join and audit them.

`learning.learn_round` follows. Pods call these functions one by one, and `together.play_and_learn` in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steptool.artifacts import lineage
from steptool.artifacts.metrics import Stopwatch, format_rate, say
from steptool.config import Config
from steptool.pipeline.episodes import play
from steptool.records import Cost, StepReward, Trajectory
from steptool.records.tables import concatenate, write_records
from steptool.report.rewards_page import rewards_page
from steptool.rewards.annotators import annotate_file, annotator_counts, missing_reasons, open_annotator
from steptool.rewards.audit_files import audit_files, check_thresholds
from steptool.rollout.policy import Policy
from steptool.rollout.schedule import TaskSet

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
