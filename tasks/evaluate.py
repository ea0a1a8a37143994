"""Held-out episodes of a model."""

from typing import NamedTuple

from steptool.artifacts.progress import Stopwatch, Ticker, rate, say
from steptool.config import Config, EvaluatedPolicy
from steptool.contracts.columns import Row
from steptool.contracts.tables import write_rows
from steptool.records import Evaluation
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, download, make_folder
from tasks.runtime.stage import stage


class Evaluated(NamedTuple):
    """One row per query and repeat, and the episodes behind them."""

    rows: Parquet
    greedy: Parquet
    sampled: Parquet


@stage("evaluate", cached=True)
def evaluate(name: str, config: Config, model: Model, queries: Parquet, demonstrations: Parquet) -> Evaluated:
    """Play the held-out queries, greedily once and sampled as often as configured."""
    watch = Stopwatch("evaluate")
    from steptool.artifacts.queries import read_queries
    from steptool.contracts.tables import write_records
    from steptool.evaluation.metrics import evaluate as measure
    from steptool.policies.catalog import open_environment_of, open_policy
    from steptool.records import Trajectory
    from steptool.rollout.runner import roll_out
    from steptool.rollout.turns import Decoding

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    asked = read_queries(download(queries), config.evaluation.split)
    rows: list[Row] = []
    episodes: dict[Decoding, list[Trajectory]] = {Decoding.GREEDY: [], Decoding.SAMPLED: []}
    with (
        open_environment_of(asked, download(demonstrations), config) as environment,
        open_policy(EvaluatedPolicy(name=name, model=str(download(model))), config) as policy,
    ):
        for decoding, repeats in ((Decoding.GREEDY, 1), (Decoding.SAMPLED, config.evaluation.sampled_repeats)):
            for repeat in range(repeats):
                played = roll_out(
                    policy,
                    asked,
                    environment,
                    decoding=decoding,
                    sample=repeat,
                    limits=config.tools,
                    progress=Ticker("evaluate", len(asked), f"{decoding} episodes of {name}"),
                )
                trajectories = [episode.trajectory for episode in played]
                costs = {episode.trajectory.trajectory_id: episode.cost for episode in played}
                rows += measure(asked, trajectories, name, str(decoding), repeat, costs)
                episodes[decoding] += trajectories
    greedy, sampled = episodes.values()
    cost = watch.cost(sum(t.action_tokens for t in (*greedy, *sampled)))
    say("evaluate", f"{name}: {rate([r['passed'] for r in rows if r['decoding'] == 'greedy'])} on {len(asked)} queries")
    folder = make_folder("evaluate")
    return Evaluated(
        Parquet(str(write_rows(folder / "evaluations.parquet", rows, Evaluation, cost))),
        Parquet(str(write_records(folder / "greedy.parquet", greedy, Trajectory))),
        Parquet(str(write_records(folder / "sampled.parquet", sampled, Trajectory))),
    )
