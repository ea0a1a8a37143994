"""One round of reinforcement."""

from typing import NamedTuple

from flytekit import task

from steptool.config import Config
from steptool.contracts import ADVANTAGES, REWARDS, TRAJECTORIES, concat, read_costs, read_rows, write_rows
from steptool.history import count_rows, extend
from steptool.progress import Stopwatch, rate, say
from tasks.artifacts import IMAGE, Model, Parquet, local, local_all, scratch


class Improved(NamedTuple):
    """The next policy, what it learned from (the shards joined), and the history of the run until here."""

    model: Model
    trajectories: Parquet
    rewards: Parquet
    advantages: Parquet
    history: Parquet


@task(container_image=IMAGE)
def ppo(
    round: int,
    config: Config,
    policy: Model,
    reference: Model,
    trajectories: list[Parquet],
    rewards: list[Parquet],
    history: Parquet,
) -> Improved:
    """Train the policy on its own episodes of this round."""
    watch = Stopwatch("ppo", round)
    from steptool.lineage import sign
    from steptool.records import read_trajectories
    from steptool.report import folder as names
    from steptool.training.improve import improve

    joined, folder = scratch("joined"), scratch("policy")
    played = concat(local_all(trajectories), TRAJECTORIES, joined / names.of_round("trajectories", round))
    scored = concat(local_all(rewards), REWARDS, joined / names.of_round("rewards", round))
    episodes, rows = read_trajectories(played), read_rows(scored, REWARDS)
    result = improve(local(policy), local(reference), episodes, rows, config=config, round=round, out_dir=folder)
    sign(folder, local(policy), config.ppo.algorithm, [played, scored], round, result.note)

    counts = count_rows("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round)
    costs = [*read_costs(played), *read_costs(scored), watch.cost(result.tokens)]
    told = extend(local(history), [*counts, *result.metrics], costs, joined / names.HISTORY)
    learned = write_rows(joined / names.of_round("advantages", round), result.advantages, ADVANTAGES)
    say("ppo", rate([t.solved for t in episodes]), costs=read_costs(told), round=round, rounds=config.ppo.rounds)
    return Improved(
        Model(str(folder)), Parquet(str(played)), Parquet(str(scored)), Parquet(str(learned)), Parquet(str(told))
    )
