"""Scores of every step."""

from steptool.artifacts.progress import Stopwatch
from steptool.config import Config
from tasks.runtime.artifacts import Parquet, local, scratch
from tasks.runtime.stage import stage


@stage("annotate", cached=True)
def annotate(trajectories: Parquet, round: int, config: Config, queries: Parquet) -> Parquet:
    """Score the steps of a shard of trajectories by the configured annotator."""
    watch = Stopwatch("annotate", round)
    from steptool.rewards.annotators import counts_of, opened
    from steptool.rewards.stream import annotate_file

    target = scratch("annotate") / "rewards.parquet"
    with opened(config.rewards.annotator, config.rewards.judge) as chosen:
        annotate_file(local(queries), local(trajectories), chosen, target, lambda: watch.cost(counts=counts_of(chosen)))
    return Parquet(str(target))
