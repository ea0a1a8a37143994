"""From tasks to a better model and the evidence for it.

pyflyte run workflows/train.py train --config configs/laptop.yaml --output runs/demo
"""

from functools import partial
from typing import NamedTuple

from flytekit import map_task

from steptool.config import Config
from tasks.annotate import annotate, annotate_shard
from tasks.audit import audit
from tasks.evaluate import evaluate
from tasks.ingest import fingerprint, ingest
from tasks.ppo import ppo
from tasks.report import Evidence, report
from tasks.rollout import rollout
from tasks.runtime.artifacts import Model, Parquet
from tasks.runtime.stage import stage, workflow
from tasks.warm_start import prepare, warm_start


class Rounds(NamedTuple):
    """The last policy, and by round what the policies learned from, the metrics of their training and the costs."""

    model: Model
    trajectories: list[Parquet]
    rewards: list[Parquet]
    advantages: list[Parquet]
    metrics: list[Parquet]
    costs: list[Parquet]


@stage("rounds", dynamic=True)
def rounds(config: Config, start: Model, queries: Parquet, demonstrations: Parquet) -> Rounds:
    """On-policy rounds: each rolls out the current policy, scores its episodes, audits that and trains on them."""
    policy, scale = start, None
    trajectories, rewards, advantages, metrics, costs = [], [], [], [], []
    for round_index in range(config.ppo.rounds):
        play = partial(
            rollout,
            round_index=round_index,
            config=config,
            model=policy,
            queries=queries,
            demonstrations=demonstrations,
        )
        played = map_task(play)(shard=list(range(config.rollout.shards)))
        score = partial(annotate_shard, round_index=round_index, config=config, queries=queries)
        scored = map_task(score)(shard=played)
        audited = audit(round_index=round_index, config=config, queries=queries, played=played, scored=scored)
        improved = ppo(
            round_index=round_index,
            config=config,
            policy=policy,
            reference=start,
            trajectories=audited.trajectories,
            rewards=audited.rewards,
            costs=audited.costs,
            scale=scale,
        )
        policy, scale = improved.model, improved.scale
        trajectories.append(audited.trajectories)
        rewards.append(audited.rewards)
        advantages.append(improved.advantages)
        metrics.append(improved.metrics)
        costs.append(improved.costs)
    return Rounds(policy, trajectories, rewards, advantages, metrics, costs)


@workflow()
def train(config: Config, output: str = "") -> Evidence:
    """Improve a policy by step-grained PPO on its own episodes and compare it with where it started.

    Args:
        config: the run's configuration, such as configs/laptop.yaml; every field is explained there.
        output: folder or url that receives the report, the models and every Parquet artifact; none if empty.
    """
    read = ingest(config=config, sources=fingerprint(config=config, output=output))
    shown = read.demonstrations
    base = prepare(
        config=config,
        queries=read.queries,
        demonstrations=shown,
        quarantine=read.quarantine,
    )
    queries = base.queries
    warm = warm_start(config=config, base=base.model, queries=queries, lessons=base.lessons)
    trained = rounds(config=config, start=warm.model, queries=queries, demonstrations=shown)

    ask = partial(evaluate, config=config, queries=queries, demonstrations=shown)
    before = ask(name="base", model=base.model)
    started = ask(name="warm_start", model=warm.model)
    after = ask(name="steptool", model=trained.model)
    score = partial(annotate, config=config, queries=queries)
    scores_before, scores_after = score(trajectories=started.greedy), score(trajectories=after.greedy)

    return report(
        config=config,
        output=output,
        queries=queries,
        demonstrations=shown,
        lessons=base.lessons,
        recorded_rewards=read.rewards,
        quarantine=base.quarantine,
        metrics=[read.metrics, base.metrics, warm.metrics],
        costs=[
            *(read.costs, base.costs, warm.costs, before.costs, started.costs, after.costs),
            *(scores_before.costs, scores_after.costs),
        ],
        round_metrics=trained.metrics,
        round_costs=trained.costs,
        models={"model": trained.model, "warm_start": warm.model},
        trajectories=trained.trajectories,
        rewards=trained.rewards,
        advantages=trained.advantages,
        evaluations={"base": before.rows, "warm_start": started.rows, "steptool": after.rows},
        evaluation_trajectories={
            "base_greedy": before.greedy,
            "base_sampled": before.sampled,
            "warm_start_greedy": started.greedy,
            "warm_start_sampled": started.sampled,
            "steptool_greedy": after.greedy,
            "steptool_sampled": after.sampled,
        },
        evaluation_rewards={
            "warm_start_greedy": scores_before.rewards,
            "steptool_greedy": scores_after.rewards,
        },
    )
