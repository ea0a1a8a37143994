"""The task that samples episodes of the current policy."""

from steptool.artifacts.metrics import Stopwatch
from steptool.config import Config
from steptool.storage.transfer import localize
from tasks.runtime.artifacts import Model, Shard, Tasks, download, download_policy, make_folder
from tasks.runtime.stage import stage


@stage("rollout", cached=True)
def rollout(shard: int, round_index: int, config: Config, model: Model, base: Model, tasks: Tasks) -> Shard:
    """Sample a shard of a round's episodes. `base` is the model that an adapter belongs to."""
    watch = Stopwatch("rollout", round_index)
    from steptool.pipeline.episodes import TaskSet, open_learner, play_shard

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    task_set = TaskSet(download(tasks))
    with open_learner(*download_policy(model, base), config, round_index) as policy:
        return Shard(str(play_shard(policy, task_set, config, round_index, shard, make_folder("rollout"), watch)))
