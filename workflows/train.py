"""From tasks to a better model and the evidence for it.

pyflyte run workflows/train.py train --config configs/laptop.yaml --output runs/demo
"""

from functools import partial
from typing import NamedTuple

from flytekit import map_task

from steptool.config import Config
from tasks.annotate import annotate
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
    """The last policy, the history of the run until here, and by round what the policies learned from."""

    model: Model
    history: Parquet
    trajectories: list[Parquet]
    rewards: list[Parquet]
    advantages: list[Parquet]


@stage("rounds", dynamic=True)
def rounds(config: Config, start: Model, queries: Parquet, demonstrations: Parquet, history: Parquet) -> Rounds:
    """On-policy rounds: each rolls out the current policy, scores its episodes, audits that and trains on them."""
    policy, trajectories, rewards, advantages = start, [], [], []
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
        scored = map_task(partial(annotate, round_index=round_index, config=config, queries=queries))(
            trajectories=played
        )
        audited = audit(round_index=round_index, config=config, queries=queries, trajectories=played, rewards=scored)
        improved = ppo(
            round_index=round_index,
            config=config,
            policy=policy,
            reference=start,
            trajectories=audited.trajectories,
            rewards=audited.rewards,
            history=history,
        )
        policy, history = improved.model, improved.history
        trajectories.append(audited.trajectories)
        rewards.append(audited.rewards)
        advantages.append(improved.advantages)
    return Rounds(policy, history, trajectories, rewards, advantages)


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
        history=read.history,
    )
    queries = base.queries
    warm = warm_start(config=config, base=base.model, queries=queries, lessons=base.lessons, history=base.history)
    trained = rounds(config=config, start=warm.model, queries=queries, demonstrations=shown, history=warm.history)

    ask = partial(evaluate, config=config, queries=queries, demonstrations=shown)
    before = ask(name="base", model=base.model)
    started = ask(name="warm_start", model=warm.model)
    after = ask(name="steptool", model=trained.model)
    score = partial(annotate, round_index=-1, config=config, queries=queries)

    return report(
        config=config,
        output=output,
        queries=queries,
        demonstrations=shown,
        recorded_rewards=read.rewards,
        quarantine=base.quarantine,
        history=trained.history,
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
            "warm_start_greedy": score(trajectories=started.greedy),
            "steptool_greedy": score(trajectories=after.greedy),
        },
    )
