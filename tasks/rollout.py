"""Episodes of the current policy."""

from steptool.artifacts.metrics import Stopwatch, format_rate, say
from steptool.config import Config
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, Shard, download, make_folder, write_costs
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(
    shard: int, round_index: int, config: Config, model: Model, queries: Parquet, demonstrations: Parquet
) -> Shard:
    """Sample a shard of a round's episodes."""
    watch = Stopwatch("rollout", round_index)
    from steptool.pipeline.episodes import roll_out
    from steptool.records import Trajectory
    from steptool.records.tables import write_records
    from steptool.rollout.schedule import round_queries

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    chosen = round_queries(download(queries), config, round_index, shard)
    # An environment that replays opens the demonstrations, which fetches them; for any other they stay where they are.
    episodes = roll_out(download(model), chosen, config, round_index=round_index, demonstrations=demonstrations)
    result = f"shard {shard + 1} of {config.rollout.shards}, {format_rate([t.solved for t in episodes])}"
    say("rollout", result, round_index=round_index, rounds=config.ppo.rounds)
    if errors := [t.check_error for t in episodes if t.check_error]:
        failed = f"the check failed on {len(errors)} of {len(episodes)} episodes, first: {errors[0]}"
        say("rollout", failed, round_index=round_index, rounds=config.ppo.rounds)
    folder = make_folder("rollout")
    write_records(folder / "trajectories.parquet", episodes, Trajectory)
    write_costs(folder, watch.cost(sum(t.action_tokens for t in episodes)))
    return Shard(str(folder))
