"""Held-out episodes of a model."""

from typing import NamedTuple

from steptool.artifacts.progress import Stopwatch, Ticker, rate, say
from steptool.config import Config
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
    from steptool.policies.player import player
    from steptool.records import Trajectory

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    asked = read_queries(download(queries), config.evaluation.split)
    rows, sampled = [], []
    with player(download(model), asked, download(demonstrations), config) as play:
        greedy = play(asked, greedy=True, policy=name, progress=Ticker("evaluate", len(asked), f"episodes of {name}"))
        rows += measure(asked, greedy, name, "greedy", 0)
        for repeat in range(config.evaluation.sampled_repeats):
            ticker = Ticker("evaluate", len(asked), f"sampled episodes of {name}")
            episodes = play(asked, greedy=False, policy=name, sample=repeat, progress=ticker)
            rows += measure(asked, episodes, name, "sampled", repeat)
            sampled += episodes
    cost = watch.cost(sum(t.action_tokens for t in (*greedy, *sampled)))
    say("evaluate", f"{name}: {rate([r['passed'] for r in rows if r['decoding'] == 'greedy'])} on {len(asked)} queries")
    folder = make_folder("evaluate")
    return Evaluated(
        Parquet(str(write_rows(folder / "evaluations.parquet", rows, Evaluation, cost))),
        Parquet(str(write_records(folder / "greedy.parquet", greedy, Trajectory))),
        Parquet(str(write_records(folder / "sampled.parquet", sampled, Trajectory))),
    )
