"""From trajectories to conversations for other tools, and to data for TRL's trainers.

pyflyte run workflows/export.py export --trajectories runs/demo/evaluation_trajectories_steptool_greedy.parquet \
    --more_trajectories '["runs/demo/evaluation_trajectories_steptool_sampled.parquet"]' \
    --queries runs/demo/queries.parquet --form preference --output data/mine
"""

from flytekit.types.file import FlyteFile

from steptool.data.export import Form
from tasks.report import export_trajectories
from tasks.runtime.artifacts import Parquet
from tasks.runtime.stage import workflow


@workflow()
def export(
    trajectories: Parquet, queries: Parquet, form: Form, output: str, more_trajectories: list[Parquet] | None = None
) -> FlyteFile:
    """Write trajectories as messages, for supervised fine-tuning or as preferences (docs/bring-your-own-data.md).

    Args:
        trajectories: Parquet file of episodes or of demonstrations.
        queries: Parquet file of the queries that they answer.
        form: messages, sft or preference.
        output: folder or url that receives the file; others there stay.
        more_trajectories: further files of the same queries, as a JSON list; pairs are formed across all files.
    """
    return export_trajectories(
        trajectories=trajectories, queries=queries, form=form, output=output, more_trajectories=more_trajectories
    )
