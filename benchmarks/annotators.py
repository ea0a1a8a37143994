"""How well the text rules predict what the environment knows: `rules` and `lcs` against `truth`, in up to four worlds.

    python -m benchmarks.annotators --model runs/demo/warm_start

- desk: errands of all four tiers, sampled at temperature 1 with a model folder (the embedded model if none is
  given).
- functions; where the package is installed (make bfcl), BFCL's multi-turn tasks; with `--games`, a folder that
  examples/textworld/make_tasks.py has made, TextWorld: each reference solution as it is, with one of its calls made
  twice, and without one of its calls.

Prints lines `annotators WORLD MEASURE: rules lcs difference`: Cohen's kappa with the truth on whether a step
contributes, over all episodes and over the solved ones, and the AUROC of an episode's mean Contribution against solved.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from steptool.config import Config, RolloutConfig, ToolsConfig, load_config
from steptool.data.parsing import IngestLog
from steptool.data.sources import OwnTasksSource, SourceInputs
from steptool.data.tools import ToolCatalog
from steptool.environments.base import open_environment
from steptool.environments.bfcl_tasks import is_installed
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import ERRAND, LONG, PAIR, SHORT, SINGLE, draw_query
from steptool.models.load import load_codec, load_model, prepare_base
from steptool.policies.text_policies import list_reference_calls, play_back
from steptool.policies.token_policies import LocalPolicy
from steptool.records import FINISH, Query, StepReward, ToolCall, Trajectory
from steptool.rewards.annotators import annotate, make_annotator
from steptool.rewards.statistics import auroc, confusion, kappa
from steptool.rollout.runner import roll_out

World = tuple[str, Sequence[Query], Sequence[Trajectory]]
"""Name, queries and episodes."""
Vary = Callable[[Sequence[ToolCall]], Iterable[Sequence[ToolCall]]]
"""Variations of a reference solution."""


def play_desk(folder: str, tasks: int) -> World:
    """One sampled episode a query."""
    queries = [
        draw_query(ERRAND, tier, f"annotators.{n}") for tier in (SINGLE, SHORT, PAIR, LONG) for n in range(tasks)
    ]
    model, codec = load_model(folder), load_codec(folder)
    rollout, room = RolloutConfig(temperature=1.0), Config().policy.max_context
    with closing(LocalPolicy(model, codec, name="p", rollout=rollout, max_context=room, seed=0)) as policy:
        return "desk", queries, [episode.trajectory for episode in roll_out(policy, queries, DeskEnvironment())]


def play_functions() -> World:
    """The tasks of the example."""
    return "functions", *play_tasks(load_config("configs/functions.yaml"), add_disturbed_calls)


def play_textworld(games: Path) -> World:
    """The games of a folder."""
    data = {
        "source": "jsonl",
        "environment": "examples/textworld/world.py:TextWorld",
        "paths": [str(games / "tasks.jsonl")],
    }
    config = Config.model_validate({"data": data, "tools": {"settings": {"games": str(games)}}})
    return "textworld", *play_tasks(config, add_disturbed_calls)


def play_tasks(config: Config, vary: Vary) -> tuple[Sequence[Query], Sequence[Trajectory]]:
    """The tasks of a configuration, and for each the episodes of the variations of its reference solution."""
    queries = list(OwnTasksSource().read_queries(SourceInputs(config, ToolCatalog(config), IngestLog())))
    recordings = [(query, calls) for query in queries for calls in vary(list_reference_calls(query))]
    with closing(open_environment(config.data.environment, config)) as environment:
        return queries, play_back(recordings, environment, limits=config.tools)


def play_bfcl(tasks: int) -> World:
    """The first tasks of each category."""
    from steptool.environments.bfcl import BfclEnvironment
    from steptool.environments.bfcl_tasks import read_bfcl_queries

    by_category: dict[str, list[Query]] = defaultdict(list)
    for query in read_bfcl_queries():
        by_category[query.tier].append(query)
    queries = [query for group in by_category.values() for query in group[:tasks]]
    recordings = [(query, calls) for query in queries for calls in add_disturbed_calls(list_reference_calls(query))]
    return "bfcl", queries, play_back(recordings, BfclEnvironment(), limits=ToolsConfig())


def add_disturbed_calls(calls: Sequence[ToolCall]) -> Iterator[list[ToolCall]]:
    """The calls as they are, with one of them made twice, and without one of them."""
    rng = random.Random(len(calls))
    places = [place for place, call in enumerate(calls) if call.name != FINISH]
    yield list(calls)
    place = rng.choice(places)
    yield [*calls[:place], calls[rng.choice(places)], *calls[place:]]
    place = rng.choice(places)
    yield [*calls[:place], *calls[place + 1 :]]


def contributions(rows: Sequence[StepReward], of: set[str]) -> dict[tuple[str, int], float]:
    """Contribution by trajectory and step, where there is one."""
    scores = ((r.trajectory_id, r.step, r.contribution) for r in rows if r.trajectory_id in of)
    return {(trajectory_id, step): score for trajectory_id, step, score in scores if score is not None}


def agreement(rows: Sequence[StepReward], truth: Sequence[StepReward], of: set[str]) -> float:
    """Cohen's kappa on whether a step contributes."""
    ours, theirs = contributions(rows, of), contributions(truth, of)
    steps = sorted(ours.keys() & theirs.keys())
    estimate = kappa(confusion([ours[s] >= 0.5 for s in steps], [theirs[s] >= 0.5 for s in steps]))
    return estimate.value if estimate else float("nan")


def separation(rows: Sequence[StepReward], episodes: Sequence[Trajectory]) -> float:
    """AUROC of the mean Contribution against solved."""
    scores = defaultdict(list)
    for (trajectory, _), score in contributions(rows, {t.trajectory_id for t in episodes}).items():
        scores[trajectory].append(score)
    scored = [t for t in episodes if t.trajectory_id in scores]
    estimate = auroc([float(np.mean(scores[t.trajectory_id])) for t in scored], [t.solved == 1.0 for t in scored])
    return estimate.value if estimate else float("nan")


def compare(name: str, queries: Sequence[Query], episodes: Sequence[Trajectory]) -> None:
    """Annotate the episodes of a world and print how the annotators compare."""
    every, solved = {t.trajectory_id for t in episodes}, {t.trajectory_id for t in episodes if t.solved == 1.0}
    rows = {
        annotator: annotate(queries, episodes, make_annotator(annotator)) for annotator in ("rules", "lcs", "truth")
    }
    print(f"annotators {name}: {len(episodes)} episodes, {len(solved) / len(episodes):.0%} solved")
    for what, of in (("all episodes", every), ("solved episodes", solved)):
        ours, other = (agreement(rows[a], rows["truth"], of) for a in ("rules", "lcs"))
        print(f"annotators {name} kappa with truth, {what}: {ours:.2f} {other:.2f} {ours - other:+.2f}")
    ours, other = (separation(rows[a], episodes) for a in ("rules", "lcs"))
    print(f"annotators {name} AUROC against solved: {ours:.3f} {other:.3f} {ours - other:+.3f}")


def main() -> None:
    """Play, annotate and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="model folder")
    parser.add_argument("--tasks", default=50, type=int, help="tasks of each tier or category")
    parser.add_argument("--games", type=Path, help="folder with TextWorld's games and tasks.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare(*play_desk(args.model or str(prepare_base(Config().policy, (), 0, folder)), args.tasks))
    compare(*play_functions())
    if is_installed():
        compare(*play_bfcl(args.tasks))
    if args.games:
        compare(*play_textworld(args.games))


if __name__ == "__main__":
    main()
