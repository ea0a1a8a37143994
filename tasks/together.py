"""Several rounds of reinforcement in one stage."""

from typing import NamedTuple

from flytekit import Deck
from flytekit.types.file import FlyteFile

from steptool.config import Config
from steptool.storage.transfer import localize
from tasks.runtime.artifacts import Model, Parquet, Tasks, discard, download, make_folder
from tasks.runtime.stage import stage


class Together(NamedTuple):
    """The policy and the running scale after the last round, and for each round what stages in pods return."""

    model: Model
    scale: FlyteFile
    trajectories: list[Parquet]
    rewards: list[Parquet]
    advantages: list[Parquet]
    metrics: list[Parquet]
    costs: list[Parquet]


def _show(name: str, page: str) -> None:
    Deck(name, page)


@stage("rounds_together", cached=True)
def rounds_together(
    first: int,
    count: int,
    config: Config,
    policy: Model,
    start: Model,
    tasks: Tasks,
    queries: Parquet,
    scale: FlyteFile | None,
) -> Together:
    """Play, annotate, audit and learn from `count` rounds, the first of which has the index `first`."""
    from steptool.pipeline.episodes import TaskSet
    from steptool.pipeline.learning import RoundInputs, play_and_learn
    from tasks.runtime.artifacts import Checkpoints

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache", "rewards.audit.previous")
    checkpoints = Checkpoints("rounds_together")
    finished = play_and_learn(
        RoundInputs(download(start), TaskSet(download(tasks)), download(queries), config),
        first,
        count,
        download(policy),
        download(scale) if scale else None,
        checkpoints.folder,
        on_checkpoint=checkpoints.save,
        show=_show,
    )
    checkpoints.remove(checkpoints.folder)  # because the results are in it
    discard(download(policy), download(start))
    last = finished[-1].learned
    return Together(
        Model(str(last.model)),
        FlyteFile(str(last.scale)),
        [Parquet(str(round_result.audited.trajectories)) for round_result in finished],
        [Parquet(str(round_result.audited.rewards)) for round_result in finished],
        [Parquet(str(round_result.learned.advantages)) for round_result in finished],
        [Parquet(str(round_result.learned.metrics)) for round_result in finished],
        [Parquet(str(round_result.learned.costs)) for round_result in finished],
    )
