"""One round of reinforcement."""

from typing import NamedTuple

from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import Stopwatch, count_metrics, format_rate, say, total_counts
from steptool.config import Config
from steptool.records import Advantage, Cost, Metric, StepReward
from steptool.records.tables import read_records, write_records
from tasks.runtime.artifacts import Model, Parquet, discard, download, make_folder, write_costs
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
    watch = Stopwatch("ppo", round_index)
    from steptool.artifacts import lineage as names
    from steptool.artifacts.lineage import sign
    from steptool.records import Trajectory
    from steptool.rewards.compose import RunningScale, provenance
    from steptool.training.rounds import train_round
    from tasks.runtime.artifacts import Checkpoints

    figures, folder = make_folder("figures"), make_folder("policy")
    episodes_file, rewards_file = download(trajectories), download(rewards)
    episodes, step_rewards = read_records(episodes_file, Trajectory), read_records(rewards_file, StepReward)
    checkpoints = Checkpoints("ppo")
    result = train_round(
        download(policy),
        download(reference),
        episodes,
        step_rewards,
        config=config,
        round_index=round_index,
        out_dir=folder,
        scale=RunningScale.load(download(scale)) if scale else RunningScale(),
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    annotation = provenance(step_rewards, config.rewards)
    sign(
        folder,
        download(policy),
        config.ppo.algorithm,
        [episodes_file, rewards_file],
        round_index,
        result.note,
        annotation,
    )

    spent = [*read_records(download(costs), Cost), watch.cost(result.tokens)]
    counts = count_metrics("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round_index)
    counts += count_metrics("annotate", total_counts(spent), round_index)
    advantages = write_records(figures / names.of_round("advantages", round_index), result.advantages, Advantage)
    say(
        "ppo",
        format_rate([t.solved for t in episodes]),
        seconds=sum(cost.seconds for cost in spent),
        round_index=round_index,
        rounds=config.ppo.rounds,
    )
    checkpoints.remove()
    discard(download(policy), download(reference))
    return Improved(
        Model(str(folder)),
        Parquet(str(advantages)),
        Parquet(str(write_records(figures / names.METRICS, [*counts, *result.metrics], Metric))),
        write_costs(figures, *spent),
        FlyteFile(str(result.scale.save(figures / "scale.json"))),
    )
