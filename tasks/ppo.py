"""One round of reinforcement."""

from typing import NamedTuple

from steptool.artifacts.contracts import ADVANTAGES, METRICS, REWARDS, read_costs, read_rows, write_rows
from steptool.artifacts.history import count_rows, extend, total_counts
from steptool.artifacts.progress import Stopwatch, rate, say
from steptool.config import Config
from tasks.runtime.artifacts import Model, Parquet, local, scratch
from tasks.runtime.stage import stage


class Improved(NamedTuple):
    """The next policy, the advantages that it learned from, and the history of the run until here."""

    model: Model
    advantages: Parquet
    history: Parquet


@stage("ppo", cached=True)
def ppo(
    round: int,
    config: Config,
    policy: Model,
    reference: Model,
    trajectories: Parquet,
    rewards: Parquet,
    history: Parquet,
) -> Improved:
    """Train the policy on its own episodes of this round."""
    watch = Stopwatch("ppo", round)
    from steptool.artifacts import layout as names
    from steptool.artifacts.lineage import sign
    from steptool.artifacts.rows import read_trajectories
    from steptool.rewards.compose import provenance
    from steptool.training.improve import improve
    from tasks.runtime.checkpoints import Checkpoints

    told, folder = scratch("told"), scratch("policy")
    played, scored, before = local(trajectories), local(rewards), read_rows(local(history), METRICS)
    episodes, rows = read_trajectories(played), read_rows(scored, REWARDS)
    checkpoints = Checkpoints("ppo")
    result = improve(
        local(policy),
        local(reference),
        episodes,
        rows,
        config=config,
        round=round,
        out_dir=folder,
        history=before,
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    made_of = provenance(rows, config.rewards)
    sign(folder, local(policy), config.ppo.algorithm, [played, scored], round, result.note, made_of)

    costs = [*read_costs(played), *read_costs(scored), watch.cost(result.tokens)]
    counts = count_rows("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round)
    counts += count_rows("annotate", total_counts(costs), round)
    so_far = extend(local(history), [*counts, *result.metrics], costs, told / names.HISTORY)
    learned = write_rows(told / names.of_round("advantages", round), result.advantages, ADVANTAGES)
    say("ppo", rate([t.solved for t in episodes]), costs=read_costs(so_far), round=round, rounds=config.ppo.rounds)
    return Improved(Model(str(folder)), Parquet(str(learned)), Parquet(str(so_far)))
