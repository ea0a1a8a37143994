"""From any number of policies to a table of how well they solve the same tasks, and what may be concluded.

pyflyte run workflows/evaluate.py evaluate --config configs/evaluate.yaml --output runs/evaluation
"""

from functools import partial

from flytekit import map_task
from flytekit.types.directory import FlyteDirectory

from steptool.config import Config
from tasks.contest import Compared, compared, contest, judge
from tasks.ingest import fingerprint, ingest
from tasks.runtime.artifacts import Parquet
from tasks.runtime.stage import stage, workflow


@stage("contests", dynamic=True)
def contests(config: Config, queries: Parquet, demonstrations: Parquet) -> list[FlyteDirectory]:
    """Every policy of the configuration plays, each in a task of its own."""
    play = partial(contest, config=config, queries=queries, demonstrations=demonstrations)
    folders: list[FlyteDirectory] = map_task(play)(policy=list(range(config.evaluation.contestants)))
    return folders


@workflow()
def evaluate(config: Config, output: str = "") -> Compared:
    """Compare the policies of a configuration on its queries (docs/evaluation.md).

    Args:
        config: its section `evaluation` names the policies and the split.
        output: folder or url that receives tables, page and episodes; none if empty.
    """
    sources = fingerprint(config=config, output=output, for_training=False)
    read = ingest(config=config, sources=sources, for_training=False)
    played = contests(config=config, queries=read.queries, demonstrations=read.demonstrations)
    told = judge(config=config, queries=read.queries, played=played)
    return compared(
        config=config,
        output=output,
        queries=read.queries,
        played=played,
        verdicts=told.verdicts,
        preferences=told.preferences,
    )
