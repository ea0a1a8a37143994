"""Episodes of the current policy."""

from steptool.artifacts.progress import Stopwatch, Ticker, rate, say
from steptool.config import Config
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, local, scratch
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(shard: int, round: int, config: Config, model: Model, queries: Parquet, demonstrations: Parquet) -> Parquet:
    """Sample a shard of a round's episodes."""
    watch = Stopwatch("rollout", round)
    from steptool.artifacts.rows import write_trajectories
    from steptool.policies.player import player
    from steptool.rollout.schedule import round_queries

    config = localize(config, scratch("fetched"), "tools.toolbench.cache")
    asked = round_queries(local(queries), config, round, shard)
    ticker = Ticker("rollout", len(asked), "episodes")
    with player(local(model), asked, local(demonstrations), config) as play:
        episodes = play(asked, greedy=False, policy=f"round_{round:02d}", round=round, progress=ticker)
    cost = watch.cost(sum(t.action_tokens for t in episodes))
    said = f"shard {shard + 1} of {config.rollout.shards}, {rate([t.solved for t in episodes])}"
    say("rollout", said, round=round, rounds=config.ppo.rounds)
    return Parquet(str(write_trajectories(scratch("rollout") / "trajectories.parquet", episodes, cost)))
