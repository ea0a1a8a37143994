"""One round of reinforcement."""

from typing import NamedTuple

from flytekit.types.file import FlyteFile

from steptool.config import Config
from tasks.runtime.artifacts import Model, Parquet, discard, download, make_folder
from tasks.runtime.stage import stage


class Improved(NamedTuple):
    """The next policy, the advantages that it learned from, the metrics of its training, what the whole round cost,
    and the running scale of rewards for the next round."""

    model: Model
    advantages: Parquet
    metrics: Parquet
    costs: Parquet
    scale: FlyteFile


@stage("ppo", cached=True)
def ppo(
    round_index: int,
    config: Config,
    policy: Model,
    reference: Model,
    trajectories: Parquet,
    rewards: Parquet,
    costs: Parquet,
    scale: FlyteFile | None,
) -> Improved:
    """Train the policy on its own episodes of this round.

    `costs` are those of the episodes and of their rewards. The first round has no running scale to start from.
    """
    from steptool.pipeline.episodes import AuditedRound
    from steptool.pipeline.learning import learn_round
    from tasks.runtime.artifacts import Checkpoints

    checkpoints = Checkpoints("ppo")
    learned = learn_round(
        download(policy),
        download(reference),
        AuditedRound(download(trajectories), download(rewards), download(costs)),
        config,
        round_index,
        download(scale) if scale else None,
        make_folder("round"),
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    checkpoints.remove()
    discard(download(policy), download(reference))
    return Improved(
        Model(str(learned.model)),
        Parquet(str(learned.advantages)),
        Parquet(str(learned.metrics)),
        Parquet(str(learned.costs)),
        FlyteFile(str(learned.scale)),
    )
