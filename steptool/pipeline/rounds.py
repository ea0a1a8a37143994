"""One round of reinforcement by files: play the shards, score them, join and audit them, learn.

The Flyte tasks call these functions one by one, each in a pod of its own; `together` calls them in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steptool.artifacts import layout
from steptool.artifacts.lineage import sign
from steptool.artifacts.metrics import count_metrics, total_counts
from steptool.artifacts.progress import Stopwatch, format_rate, say
from steptool.config import Config
from steptool.contracts.tables import concatenate, read_records, write_records
from steptool.models.adapter import ModelPlace, read_base_name
from steptool.pipeline.episodes import roll_out
from steptool.records import Advantage, Cost, Metric, StepReward, Trajectory
from steptool.report.rewards_page import rewards_page
from steptool.rewards.annotators import annotate_file, annotator_counts, missing_reasons, open_annotator
from steptool.rewards.audit_files import audit_files, check_thresholds
from steptool.rewards.compose import provenance
from steptool.rewards.running_scale import RunningScale
from steptool.rollout.schedule import round_queries
from steptool.training.checkpoints import OnCheckpoint
from steptool.training.rounds import train_round

EPISODES, REWARDS = "trajectories.parquet", "rewards.parquet"
"""The files of a shard, beside its costs."""
Place = str | os.PathLike[str]


@dataclass(frozen=True)
class AuditedRound:
    """The episodes of a round, the rewards to learn from and what both cost, each in one file."""

    trajectories: Path
    rewards: Path
    costs: Path


@dataclass(frozen=True)
class LearnedRound:
    """The next policy, what it learned from, the metrics of its training, the costs of the round, and its scale."""

    model: Path
    """A model folder, or with LoRA an adapter folder."""
    advantages: Path
    metrics: Path
    costs: Path
    """Of the whole round."""
    scale: Path
    """The running scale of rewards for the next round."""


def play_shard(
    policy: ModelPlace,
    queries: Path,
    demonstrations: Place,
    config: Config,
    round_index: int,
    shard: int,
    folder: Path,
) -> Path:
    """Sample a shard of a round's episodes into a folder, with their costs; returns the folder.

    Only an environment that replays opens the demonstrations.
    """
    watch = Stopwatch("rollout", round_index)
    chosen = round_queries(queries, config, round_index, shard)
    episodes = roll_out(
        policy.adapter or policy.base,
        chosen,
        config,
        base=policy.base,
        round_index=round_index,
        demonstrations=demonstrations,
    )
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
        concatenate([s / EPISODES for s in shards], Trajectory, folder / layout.of_round("trajectories", round_index)),
        concatenate([s / REWARDS for s in scores], StepReward, folder / layout.of_round("rewards", round_index)),
        concatenate([s / layout.COSTS for s in (*shards, *scores)], Cost, folder / layout.COSTS),
    )
    result = audit_files(queries, audited.trajectories, audited.rewards, config)
    show(rewards_page(result, f"The rewards of round {round_index + 1}"))
    check_thresholds(result, config.rewards.audit, f"round {round_index + 1}")
    return audited


def learn_round(
    policy: Path,
    reference: Path,
    audited: AuditedRound,
    config: Config,
    round_index: int,
    scale: Path | None,
    folder: Path,
    *,
    checkpoints: Path | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> LearnedRound:
    """Train the policy on its own episodes; the next one and the figures are written into folders below `folder`.

    `scale` is the running scale of the rounds before; the first round has none.
    """
    watch = Stopwatch("ppo", round_index)
    model, figures = folder / "policy", folder / "figures"
    model.mkdir(parents=True)
    figures.mkdir()
    episodes, rewards = read_records(audited.trajectories, Trajectory), read_records(audited.rewards, StepReward)
    result = train_round(
        policy,
        reference,
        episodes,
        rewards,
        config=config,
        round_index=round_index,
        out_dir=model,
        scale=RunningScale.load(scale) if scale else RunningScale(),
        checkpoints=checkpoints,
        on_checkpoint=on_checkpoint,
    )
    sign(
        model,
        policy,
        config.ppo.algorithm,
        [audited.trajectories, audited.rewards],
        round_index,
        result.note,
        provenance(rewards, config.rewards),
        read_base_name(model),
    )
    spent = [*read_records(audited.costs, Cost), watch.cost(result.tokens)]
    counts = count_metrics("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round_index)
    counts += count_metrics("annotate", total_counts(spent), round_index)
    say(
        "ppo",
        format_rate([t.solved for t in episodes]),
        seconds=sum(cost.seconds for cost in spent),
        round_index=round_index,
        rounds=config.ppo.rounds,
    )
    return LearnedRound(
        model,
        write_records(figures / layout.of_round("advantages", round_index), result.advantages, Advantage),
        write_records(figures / layout.METRICS, [*counts, *result.metrics], Metric),
        write_costs(figures, *spent),
        result.scale.save(figures / "scale.json"),
    )


def write_costs(folder: Path, *costs: Cost) -> Path:
    """Write costs into a folder, under their usual name."""
    return write_records(folder / layout.COSTS, costs, Cost)
