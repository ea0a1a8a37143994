"""Score trajectories again, by any annotator and without a new rollout, and see whether the rewards can be trusted.

pyflyte run workflows/annotate.py annotate --config configs/laptop.yaml --output data/scored \
    --trajectories runs/demo/trajectories_round_00.parquet --queries runs/demo/queries.parquet
"""

from steptool.config import Config
from tasks.episodes import ReviewOutputs, review_rewards
from tasks.episodes import annotate as score
from tasks.runtime.artifacts import Parquet
from tasks.runtime.stage import workflow


@workflow()
def annotate(config: Config, trajectories: Parquet, queries: Parquet, output: str, compare: str = "") -> ReviewOutputs:
    """Write rewards.parquet, costs.parquet, audit.html and audit.json (docs/annotators.md).

    Args:
        config: its section `rewards` names the annotator, the composition and the second opinion.
        trajectories: Parquet file of episodes or of demonstrations.
        queries: Parquet file of the queries that they answer.
        output: folder or url that receives the files; others there stay.
        compare: file or url of other rewards. On the same trajectories they are one more opinion (another annotator,
            human labels); on other trajectories, an earlier run that drift is measured against. None if empty.
    """
    annotation = score(trajectories=trajectories, config=config, queries=queries)
    return review_rewards(
        output=output,
        config=config,
        queries=queries,
        trajectories=trajectories,
        rewards=annotation.rewards,
        costs=annotation.costs,
        compare=compare,
    )
