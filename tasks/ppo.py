"""One round of reinforcement."""

from typing import NamedTuple

from steptool.artifacts.history import count_metrics, extend, total_counts
from steptool.artifacts.progress import Stopwatch, rate, say
from steptool.config import Config
from steptool.contracts.tables import read_costs, read_records, write_records
from steptool.records import Advantage, Metric, StepReward
from tasks.runtime.artifacts import Model, Parquet, download, make_folder
from tasks.runtime.stage import stage


class Improved(NamedTuple):
    """The next policy, the advantages that it learned from, and the history of the run until here."""

    model: Model
    advantages: Parquet
    history: Parquet


@stage("ppo", cached=True)
def ppo(
    round_index: int,
    config: Config,
    policy: Model,
    reference: Model,
    trajectories: Parquet,
    rewards: Parquet,
    history: Parquet,
) -> Improved:
    """Train the policy on its own episodes of this round."""
    watch = Stopwatch("ppo", round_index)
    from steptool.artifacts import layout as names
    from steptool.artifacts.lineage import sign
    from steptool.records import Trajectory
    from steptool.rewards.compose import provenance
    from steptool.training.rounds import train_round
    from tasks.runtime.checkpoints import Checkpoints

    told, folder = make_folder("told"), make_folder("policy")
    played, scored, before = download(trajectories), download(rewards), read_records(download(history), Metric)
    episodes, rows = read_records(played, Trajectory), read_records(scored, StepReward)
    checkpoints = Checkpoints("ppo")
    result = train_round(
        download(policy),
        download(reference),
        episodes,
        rows,
        config=config,
        round_index=round_index,
        out_dir=folder,
        history=before,
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    made_of = provenance(rows, config.rewards)
    sign(folder, download(policy), config.ppo.algorithm, [played, scored], round_index, result.note, made_of)

    costs = [*read_costs(played), *read_costs(scored), watch.cost(result.tokens)]
    counts = count_metrics("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round_index)
    counts += count_metrics("annotate", total_counts(costs), round_index)
    so_far = extend(download(history), [*counts, *result.metrics], costs, told / names.HISTORY)
    learned = write_records(told / names.of_round("advantages", round_index), result.advantages, Advantage)
    say(
        "ppo", rate([t.solved for t in episodes]), costs=read_costs(so_far), round=round_index, rounds=config.ppo.rounds
    )
    return Improved(Model(str(folder)), Parquet(str(learned)), Parquet(str(so_far)))
