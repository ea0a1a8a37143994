"""Episodes of the current policy."""

from steptool.config import Config
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Shard, Tasks, download, download_policy, make_folder
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(shard: int, round_index: int, config: Config, model: Model, base: Model, tasks: Tasks) -> Shard:
    """Sample a shard of a round's episodes. `base` is that of the adapter, if the model is one."""
    from steptool.pipeline.rounds import play_shard
    from steptool.rollout.schedule import TaskSet

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    policy, task_set = download_policy(model, base), TaskSet(download(tasks))
    return Shard(str(play_shard(*policy, task_set, config, round_index, shard, make_folder("rollout"))))
