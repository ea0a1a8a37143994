"""Episodes of the current policy."""

from steptool.artifacts.progress import Stopwatch, Ticker, rate, say
from steptool.config import Config, EvaluatedPolicy
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, Shard, download, make_folder, write_costs
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(
    shard: int, round_index: int, config: Config, model: Model, queries: Parquet, demonstrations: Parquet
) -> Shard:
    """Sample a shard of a round's episodes."""
    watch = Stopwatch("rollout", round_index)
    from steptool.contracts.tables import write_records
    from steptool.policies.catalog import open_environment_of, open_policy
    from steptool.records import Trajectory
    from steptool.rollout.runner import roll_out
    from steptool.rollout.schedule import round_queries

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    chosen = round_queries(download(queries), config, round_index, shard)
    ticker = Ticker("rollout", len(chosen), "episodes")
    learner = EvaluatedPolicy(name=f"round_{round_index:02d}", model=str(download(model)))
    with (
        open_environment_of(chosen, download(demonstrations), config) as environment,
        open_policy(learner, config) as policy,
    ):
        played = roll_out(policy, chosen, environment, round_index=round_index, limits=config.tools, progress=ticker)
    episodes = [episode.trajectory for episode in played]
    result = f"shard {shard + 1} of {config.rollout.shards}, {rate([t.solved for t in episodes])}"
    say("rollout", result, round_index=round_index, rounds=config.ppo.rounds)
    if errors := [t.check_error for t in episodes if t.check_error]:
        failed = f"the check failed on {len(errors)} of {len(episodes)} episodes, first: {errors[0]}"
        say("rollout", failed, round_index=round_index, rounds=config.ppo.rounds)
    folder = make_folder("rollout")
    write_records(folder / "trajectories.parquet", episodes, Trajectory)
    write_costs(folder, watch.cost(sum(t.action_tokens for t in episodes)))
    return Shard(str(folder))
