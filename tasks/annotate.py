"""Scores of every step."""

from flytekit import task

from steptool.config import Config
from steptool.contracts import REWARDS, write_rows
from steptool.progress import Stopwatch
from tasks.artifacts import IMAGE, Parquet, local, scratch


@task(container_image=IMAGE)
def annotate(trajectories: Parquet, round: int, config: Config, queries: Parquet) -> Parquet:
    """Score the steps of a shard of trajectories by the configured annotator."""
    watch = Stopwatch("annotate", round)
    from steptool.records import read_trajectories
    from steptool.rewards.annotators import annotate as score
    from steptool.rewards.annotators import annotator
    from steptool.schedule import named_queries

    episodes = read_trajectories(local(trajectories))
    asked = named_queries(local(queries), (t.query_id for t in episodes))
    rows = score(asked, episodes, annotator(config.rewards.annotator))
    return Parquet(str(write_rows(scratch("annotate") / "rewards.parquet", rows, REWARDS, watch.cost())))
