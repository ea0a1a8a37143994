"""Scores of every step."""

from steptool.artifacts.contracts import Cost
from steptool.artifacts.progress import Stopwatch
from steptool.config import Config
from tasks.runtime.artifacts import Parquet, local, scratch
from tasks.runtime.stage import stage


@stage("annotate", cached=True)
def annotate(trajectories: Parquet, round: int, config: Config, queries: Parquet) -> Parquet:
    """Score the steps of a shard of trajectories by the configured annotator."""
    watch = Stopwatch("annotate", round)
    from steptool.rewards.annotators import annotate_file, annotator_counts, open_annotator

    target = scratch("annotate") / "rewards.parquet"
    with open_annotator(config.rewards.annotator, config.rewards.judge) as annotator:

        def cost() -> Cost:
            return watch.cost(counts=annotator_counts(annotator))

        annotate_file(local(queries), local(trajectories), annotator, target, cost)
    return Parquet(str(target))
