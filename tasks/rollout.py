"""Episodes of the current policy."""

from steptool.artifacts.metrics import Stopwatch, format_rate, say
from steptool.config import Config
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Shard, Tasks, download, make_folder, write_costs
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(shard: int, round_index: int, config: Config, model: Model, tasks: Tasks) -> Shard:
    """Sample a shard of a round's episodes."""
    watch = Stopwatch("rollout", round_index)
    from steptool.pipeline.episodes import roll_out
    from steptool.records import Trajectory
    from steptool.records.tables import write_records
    from steptool.rollout.schedule import TaskSet

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    task_set = TaskSet(download(tasks))
    queries, recordings = task_set.round_queries(config, round_index, shard), task_set.recordings()
    episodes = roll_out(download(model), queries, config, round_index=round_index, recordings=recordings)
    result = f"shard {shard + 1} of {config.rollout.shards}, {format_rate([t.solved for t in episodes])}"
    say("rollout", result, round_index=round_index, rounds=config.ppo.rounds)
    if errors := [t.check_error for t in episodes if t.check_error]:
        failed = f"the check failed on {len(errors)} of {len(episodes)} episodes, first: {errors[0]}"
        say("rollout", failed, round_index=round_index, rounds=config.ppo.rounds)
    folder = make_folder("rollout")
    write_records(folder / "trajectories.parquet", episodes, Trajectory)
    write_costs(folder, watch.cost(sum(t.action_tokens for t in episodes)))
    return Shard(str(folder))
