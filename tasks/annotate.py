"""The tasks that score the steps of trajectories."""

from typing import NamedTuple

from steptool.config import Config
from tasks.runtime.artifacts import Parquet, Shard, download, make_folder
from tasks.runtime.stage import stage


class Annotated(NamedTuple):
    """The rewards of a file of trajectories, and what they cost."""

    rewards: Parquet
    costs: Parquet


@stage("annotate", cached=True)
def annotate(trajectories: Parquet, config: Config, queries: Parquet) -> Annotated:
    """Score the steps of a file of trajectories by the configured annotator."""
    from steptool.pipeline.episodes import score_file

    folder = score_file(download(trajectories), download(queries), config, -1, make_folder("annotate"))
    return Annotated(Parquet(str(folder / "rewards.parquet")), Parquet(str(folder / "costs.parquet")))


@stage("annotate", cached=True)
def annotate_shard(shard: Shard, round_index: int, config: Config, queries: Parquet) -> Shard:
    """Score the steps of a shard of a round."""
    from steptool.pipeline.episodes import EPISODES, score_file

    episodes = download(shard) / EPISODES
    return Shard(str(score_file(episodes, download(queries), config, round_index, make_folder("annotate"))))
