"""How well the text rules predict what the environment knows: `rules` and `lcs` against `truth`.

    python benchmarks/annotators.py --model runs/demo/warm_start

Plays held-out tasks of all four tiers of the desk, sampled at temperature 1, with a model folder (the embedded model if
none is given). Prints lines `name: rules lcs difference`: Cohen's kappa with the truth on whether a step contributes,
over all episodes and over the solved ones, and the AUROC of an episode's mean Contribution against solved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch

from steptool.config import Config, RolloutConfig
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import LONG, PAIR, SHORT, SINGLE, draw_query
from steptool.models.load import load_codec, load_model, prepare_base
from steptool.policies.local import LocalPolicy
from steptool.records import Query, StepReward, Trajectory
from steptool.rewards.agreement import auroc, confusion, kappa
from steptool.rewards.annotators import annotate, make_annotator
from steptool.rollout.runner import roll_out


def play(folder: str, queries: Sequence[Query], config: Config) -> list[Trajectory]:
    """One sampled episode a query."""
    model, codec = load_model(folder), load_codec(folder)
    rollout, room = RolloutConfig(temperature=1.0), config.policy.max_context
    with closing(LocalPolicy(model, codec, name="p", rollout=rollout, max_context=room, seed=0)) as policy:
        return [episode.trajectory for episode in roll_out(policy, queries, DeskEnvironment())]


def contributions(rows: Sequence[StepReward], of: set[str]) -> dict[tuple[str, int], float]:
    """Contribution by trajectory and step, where there is one."""
    scores = ((r.trajectory_id, r.step, r.contribution) for r in rows if r.trajectory_id in of)
    return {(trajectory_id, step): score for trajectory_id, step, score in scores if score is not None}


def agreement(rows: Sequence[StepReward], truth: Sequence[StepReward], of: set[str]) -> float:
    """Cohen's kappa on whether a step contributes."""
    ours, theirs = contributions(rows, of), contributions(truth, of)
    steps = sorted(ours.keys() & theirs.keys())
    found = kappa(confusion([ours[s] >= 0.5 for s in steps], [theirs[s] >= 0.5 for s in steps]))
    return found.value if found else float("nan")


def separation(rows: Sequence[StepReward], episodes: Sequence[Trajectory]) -> float:
    """AUROC of the mean Contribution against solved."""
    scores = defaultdict(list)
    for (trajectory, _), score in contributions(rows, {t.trajectory_id for t in episodes}).items():
        scores[trajectory].append(score)
    scored = [t for t in episodes if t.trajectory_id in scores]
    found = auroc([float(np.mean(scores[t.trajectory_id])) for t in scored], [t.solved == 1.0 for t in scored])
    return found.value if found else float("nan")


def main() -> None:
    """Play, annotate and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="model folder")
    parser.add_argument("--tasks", default=50, type=int, help="tasks of each tier")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = Config()
    tiers = (SINGLE, SHORT, PAIR, LONG)
    queries = [draw_query("heldout", tier, f"annotators.{n}") for tier in tiers for n in range(args.tasks)]
    with tempfile.TemporaryDirectory() as folder:
        episodes = play(args.model or str(prepare_base(config.policy, (), 0, folder)), queries, config)
    every, solved = {t.trajectory_id for t in episodes}, {t.trajectory_id for t in episodes if t.solved}
    rows = {name: annotate(queries, episodes, make_annotator(name)) for name in ("rules", "lcs", "truth")}
    print(f"annotators: {len(episodes)} episodes, {len(solved) / len(episodes):.0%} solved")
    for name, of in (("all episodes", every), ("solved episodes", solved)):
        ours, other = (agreement(rows[a], rows["truth"], of) for a in ("rules", "lcs"))
        print(f"annotators kappa with truth, {name}: {ours:.2f} {other:.2f} {ours - other:+.2f}")
    ours, other = (separation(rows[a], episodes) for a in ("rules", "lcs"))
    print(f"annotators AUROC against solved: {ours:.3f} {other:.3f} {ours - other:+.3f}")


if __name__ == "__main__":
    main()
