"""One HTML file in which trajectories can be searched, and read step by step.

pyflyte run workflows/view.py view --queries runs/demo/queries.parquet --output viewer.html \
    --trajectories runs/demo/evaluation_trajectories_warm_start_greedy.parquet \
    --trajectories_b runs/demo/evaluation_trajectories_steptool_greedy.parquet
"""

from flytekit.types.file import FlyteFile

from tasks.report import write_page
from tasks.runtime.artifacts import Parquet
from tasks.runtime.stage import workflow


@workflow()
def view(
    trajectories: Parquet,
    queries: Parquet,
    output: str,
    title: str = "Trajectories",
    rewards: Parquet | None = None,
    advantages: Parquet | None = None,
    trajectories_b: Parquet | None = None,
    rewards_b: Parquet | None = None,
    advantages_b: Parquet | None = None,
    page_size: int = 50_000,
) -> FlyteFile:
    """Write the viewer of one or two sets of trajectories (docs/viewer.md).

    Args:
        trajectories: Parquet file of episodes or of demonstrations.
        queries: Parquet file of the queries that they answer.
        output: path or url of the HTML file.
        title: heading of the page.
        rewards: scores of the steps, by one annotator.
        advantages: rewards and advantages of the steps, as training used them.
        trajectories_b: a second set, to be shown beside the first on the same tasks.
        rewards_b: scores of its steps.
        advantages_b: rewards and advantages of its steps.
        page_size: trajectories of a file; more make several files, which link to each other.
    """
    return write_page(
        title=title,
        queries=queries,
        trajectories=trajectories,
        rewards=rewards,
        advantages=advantages,
        trajectories_b=trajectories_b,
        rewards_b=rewards_b,
        advantages_b=advantages_b,
        page_size=page_size,
        output=output,
    )
