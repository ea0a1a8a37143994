"""One round of reinforcement."""

from typing import NamedTuple

from flytekit import task

from steptool.config import Config
from steptool.contracts import ADVANTAGES, REWARDS, read_costs, read_rows, write_rows
from steptool.history import count_rows, extend
from steptool.progress import Stopwatch, rate, say
from tasks.artifacts import IMAGE, Model, Parquet, local, local_all, scratch


class Improved(NamedTuple):
    """The next policy, the advantages that it learned from, and the history of the run until here."""

    model: Model
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
    from steptool.training.improve import improve

    played, scored, folder = local_all(trajectories), local_all(rewards), scratch("policy")
    episodes = [t for path in played for t in read_trajectories(path)]
    rows = [row for path in scored for row in read_rows(path, REWARDS)]
    result = improve(local(policy), local(reference), episodes, rows, config=config, round=round, out_dir=folder)

    files = {f"{p.stem} of shard {n}": p for paths in (played, scored) for n, p in enumerate(paths)}
    sign(folder, local(policy), config.ppo.algorithm, files, round, result.note)
    costs = [c for p in (*played, *scored) for c in read_costs(p)] + [watch.cost(result.tokens)]
    counts = count_rows("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round)
    written = scratch("learned")
    told = extend(local(history), [*counts, *result.metrics], costs, written / "history.parquet")
    advantages = write_rows(written / "advantages.parquet", result.advantages, ADVANTAGES)
    say("ppo", rate([t.solved for t in episodes]), costs=read_costs(told), round=round, rounds=config.ppo.rounds)
    return Improved(Model(str(folder)), Parquet(str(advantages)), Parquet(str(told)))
