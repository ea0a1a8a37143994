"""Episodes of the current policy."""

from steptool.artifacts.progress import Stopwatch, Ticker, rate, say
from steptool.config import Config
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, download, make_folder
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(
    shard: int, round_index: int, config: Config, model: Model, queries: Parquet, demonstrations: Parquet
) -> Parquet:
    """Sample a shard of a round's episodes."""
    watch = Stopwatch("rollout", round_index)
    from steptool.contracts.tables import write_records
    from steptool.policies.player import player
    from steptool.records import Trajectory
    from steptool.rollout.schedule import round_queries

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    asked = round_queries(download(queries), config, round_index, shard)
    ticker = Ticker("rollout", len(asked), "episodes")
    with player(download(model), asked, download(demonstrations), config) as play:
        episodes = play(asked, greedy=False, policy=f"round_{round_index:02d}", round=round_index, progress=ticker)
    cost = watch.cost(sum(t.action_tokens for t in episodes))
    said = f"shard {shard + 1} of {config.rollout.shards}, {rate([t.solved for t in episodes])}"
    say("rollout", said, round=round_index, rounds=config.ppo.rounds)
    return Parquet(str(write_records(make_folder("rollout") / "trajectories.parquet", episodes, Trajectory, cost)))
