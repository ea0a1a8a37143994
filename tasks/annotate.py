"""Scores of every step."""

from steptool.artifacts.progress import Stopwatch, say
from steptool.config import Config
from steptool.records import Cost
from tasks.runtime.artifacts import Parquet, download, make_folder
from tasks.runtime.stage import stage


@stage("annotate", cached=True)
def annotate(trajectories: Parquet, round_index: int, config: Config, queries: Parquet) -> Parquet:
    """Score the steps of a shard of trajectories by the configured annotator."""
    watch = Stopwatch("annotate", round_index)
    from steptool.rewards.annotators import (
        annotate_file,
        annotator_counts,
        missing_reasons,
        open_annotator,
    )

    target = make_folder("annotate") / "rewards.parquet"
    with open_annotator(config.rewards.annotator, config.rewards.judge) as annotator:

        def cost() -> Cost:
            return watch.cost(counts=annotator_counts(annotator))

        annotate_file(download(queries), download(trajectories), annotator, target, cost)
        if reasons := missing_reasons(annotator):
            say("annotate", f"votes are missing: {reasons}", round=round_index)
    return Parquet(str(target))
