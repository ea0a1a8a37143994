"""From tasks to a better model and the evidence for it.

pyflyte run workflows/train.py train --config configs/laptop.yaml --output runs/demo
"""

from functools import partial
from typing import NamedTuple

from flytekit import map_task

from steptool.config import Config
from tasks.episodes import annotate, annotate_shard, audit, rollout
from tasks.evaluate import evaluate
from tasks.ingest import fingerprint, ingest
from tasks.report import ReportOutputs, report
from tasks.runtime.artifacts import Model, Parquet, Tasks, runs_locally
from tasks.runtime.profile import profile
from tasks.runtime.stage import stage, workflow
from tasks.training import ppo, prepare, rounds_together, warm_start


class Rounds(NamedTuple):
    """The last policy, and by round what the policies learned from, the metrics of their training and the costs."""

    model: Model
    trajectories: list[Parquet]
    rewards: list[Parquet]
    advantages: list[Parquet]
    metrics: list[Parquet]
    costs: list[Parquet]


class Round(NamedTuple):
    """What one round adds to `Rounds`."""

    trajectories: Parquet
    rewards: Parquet
    advantages: Parquet
    metrics: Parquet
    costs: Parquet


@stage("rounds", dynamic=True)
def rounds(config: Config, start: Model, tasks: Tasks, queries: Parquet) -> Rounds:
    """On-policy rounds: each rolls out the current policy, scores its episodes, audits that and trains on them."""
    is_local = runs_locally() and not profile().trains_in_several_processes
    place = _place_together if config.rounds.are_together(is_local=is_local) else _place_in_pods
    model, results = place(config, start, tasks, queries)
    return Rounds(model, *(list(parts) for parts in zip(*results, strict=True)))


def _place_in_pods(config: Config, start: Model, tasks: Tasks, queries: Parquet) -> tuple[Model, list[Round]]:
    """A stage for each step of a round, and for each shard. Returns the last policy and the rounds."""
    policy, scale, results = start, None, []
    for round_index in range(config.ppo.rounds):
        play = partial(rollout, round_index=round_index, config=config, model=policy, base=start, tasks=tasks)
        episode_shards = map_task(play)(shard=list(range(config.rollout.shards)))
        score = partial(annotate_shard, round_index=round_index, config=config, queries=queries)
        reward_shards = map_task(score)(shard=episode_shards)
        episodes = audit(
            round_index=round_index,
            config=config,
            queries=queries,
            episode_shards=episode_shards,
            reward_shards=reward_shards,
        )
        update = ppo(
            round_index=round_index,
            config=config,
            policy=policy,
            reference=start,
            trajectories=episodes.trajectories,
            rewards=episodes.rewards,
            costs=episodes.costs,
            scale=scale,
        )
        policy, scale = update.model, update.scale
        results.append(Round(episodes.trajectories, episodes.rewards, update.advantages, update.metrics, update.costs))
    return policy, results


def _place_together(config: Config, start: Model, tasks: Tasks, queries: Parquet) -> tuple[Model, list[Round]]:
    """A stage for several rounds. Returns the last policy and the rounds."""
    policy, scale, results = start, None, []
    for first in range(0, config.ppo.rounds, config.rounds.per_stage):
        count = min(config.rounds.per_stage, config.ppo.rounds - first)
        outputs = rounds_together(
            first=first,
            count=count,
            config=config,
            policy=policy,
            start=start,
            tasks=tasks,
            queries=queries,
            scale=scale,
        )
        policy, scale = outputs.model, outputs.scale
        columns = (outputs.trajectories, outputs.rewards, outputs.advantages, outputs.metrics, outputs.costs)
        results += [Round(*(column[number] for column in columns)) for number in range(count)]
    return policy, results


@workflow()
def train(config: Config, output: str = "") -> ReportOutputs:
    """Improve a policy by step-grained PPO on its own episodes and compare it with where it started.

    Args:
        config: the run's configuration, such as configs/laptop.yaml; every field is explained there.
        output: folder or url that receives the report, the models and every Parquet artifact; none if empty.
    """
    data = ingest(config=config, sources=fingerprint(config=config, output=output))
    demonstrations = data.demonstrations
    base = prepare(
        config=config,
        queries=data.queries,
        demonstrations=demonstrations,
        quarantine=data.quarantine,
    )
    queries = base.queries
    warm = warm_start(config=config, base=base.model, queries=queries, lessons=base.lessons)
    training = rounds(config=config, start=warm.model, tasks=base.tasks, queries=queries)

    measure = partial(evaluate, config=config, tasks=base.tasks)
    base_evaluation = measure(name="base", model=base.model, base=base.model)
    warm_start_evaluation = measure(name="warm_start", model=warm.model, base=warm.model)
    final_evaluation = measure(name="steptool", model=training.model, base=warm.model)
    score = partial(annotate, config=config, queries=queries)
    warm_start_scores = score(trajectories=warm_start_evaluation.greedy)
    final_scores = score(trajectories=final_evaluation.greedy)

    return report(
        config=config,
        output=output,
        queries=queries,
        demonstrations=demonstrations,
        lessons=base.lessons,
        recorded_rewards=data.rewards,
        quarantine=base.quarantine,
        metrics=[data.metrics, base.metrics, warm.metrics],
        costs=[
            *(data.costs, base.costs, warm.costs, base_evaluation.costs),
            *(warm_start_evaluation.costs, final_evaluation.costs, warm_start_scores.costs, final_scores.costs),
        ],
        round_metrics=training.metrics,
        round_costs=training.costs,
        models={"model": training.model, "warm_start": warm.model},
        trajectories=training.trajectories,
        rewards=training.rewards,
        advantages=training.advantages,
        evaluations={
            "base": base_evaluation.rows,
            "warm_start": warm_start_evaluation.rows,
            "steptool": final_evaluation.rows,
        },
        evaluation_trajectories={
            "base_greedy": base_evaluation.greedy,
            "base_sampled": base_evaluation.sampled,
            "warm_start_greedy": warm_start_evaluation.greedy,
            "warm_start_sampled": warm_start_evaluation.sampled,
            "steptool_greedy": final_evaluation.greedy,
            "steptool_sampled": final_evaluation.sampled,
        },
        evaluation_rewards={
            "warm_start_greedy": warm_start_scores.rewards,
            "steptool_greedy": final_scores.rewards,
        },
    )
