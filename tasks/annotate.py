"""Scores of every step."""

from pathlib import Path
from typing import NamedTuple

from steptool.artifacts.metrics import Stopwatch, say
from steptool.config import Config
from tasks.runtime.artifacts import Parquet, Shard, download, make_folder, write_costs
from tasks.runtime.stage import stage


class Annotated(NamedTuple):
    """The rewards of a file of trajectories, and what they cost."""

    rewards: Parquet
    costs: Parquet


@stage("annotate", cached=True)
def annotate(trajectories: Parquet, config: Config, queries: Parquet) -> Annotated:
    """Score the steps of a file of trajectories by the configured annotator."""
    folder = _annotate(download(trajectories), -1, config, download(queries))
    return Annotated(Parquet(str(folder / "rewards.parquet")), Parquet(str(folder / "costs.parquet")))


@stage("annotate", cached=True)
def annotate_shard(shard: Shard, round_index: int, config: Config, queries: Parquet) -> Shard:
    """Score the steps of a shard of a round."""
    return Shard(str(_annotate(download(shard) / "trajectories.parquet", round_index, config, download(queries))))


def _annotate(trajectories: Path, round_index: int, config: Config, queries: Path) -> Path:
    """The folder with rewards and costs."""
    watch = Stopwatch("annotate", round_index)
    from steptool.rewards.annotators import (
        annotate_file,
        annotator_counts,
        missing_reasons,
        open_annotator,
    )

    folder = make_folder("annotate")
    with open_annotator(config.rewards.annotator, config.rewards.judge) as annotator:
        annotate_file(queries, trajectories, annotator, folder / "rewards.parquet")
        write_costs(folder, watch.cost(counts=annotator_counts(annotator)))
        if reasons := missing_reasons(annotator):
            say("annotate", f"votes are missing: {reasons}", round_index=round_index)
    return folder
