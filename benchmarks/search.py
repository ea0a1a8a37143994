"""DFSDT against the chain on held-out tasks of the desk: what a search solves and what it costs.

Plays the same tasks with a model folder (the embedded model if none is given) and the settings of configs/laptop.yaml:
greedily, sampled, and sampled without hints; one chain for each task, then one search. Prints lines
`name: DFSDT CHAIN RATIO` for the pass rate (with 95% intervals) and for the turns and tokens sampled per task, then a
line on the tasks whose chain ended without an answer, the only ones that a search goes on with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from steptool.config import Config, SearchConfig
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_desk_queries
from steptool.models.load import load_codec, load_model, prepare_base
from steptool.policies.token_policies import LocalPolicy
from steptool.records import Query, Trajectory
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import roll_out

Played = Sequence[Trajectory]


def line(name: str, tree: Sequence[float], chain: Sequence[float], note: str = "") -> None:
    """Print the means over tasks as `name: OURS OTHER RATIO`."""
    ours, other = float(np.mean(tree)), float(np.mean(chain))
    print(f"{name}: {ours:.3f} {other:.3f} {ours / other if other else float('nan'):.2f}{note}", flush=True)


def solved(trajectories: Played) -> list[float]:
    """The verdicts."""
    return [t.solved or 0.0 for t in trajectories]


def interval(trajectories: Played) -> str:
    """95% interval of the pass rate, from a bootstrap over tasks."""
    means = np.random.default_rng(0).choice(solved(trajectories), size=(10_000, len(trajectories))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"[{low:.3f} {high:.3f}]"


def report(way: str, tree: Played, chain: Played) -> None:
    """Print the lines of one way of decoding."""
    note = f"  intervals {interval(tree)} {interval(chain)}"
    line(f"search {way}: pass rate", solved(tree), solved(chain), note)
    line(f"search {way}: turns per task", [t.sampled_turns for t in tree], [t.sampled_turns for t in chain])
    line(f"search {way}: tokens per task", [t.sampled_tokens for t in tree], [t.sampled_tokens for t in chain])
    unanswered_before = [
        searched for searched, chained in zip(tree, chain, strict=True) if chained.final_answer is None
    ]
    answered_after = [t for t in unanswered_before if t.final_answer is not None]
    print(
        f"search {way}: {len(unanswered_before)} of {len(chain)} chains ended without an answer; their searches made "
        f"{sum(t.sampled_turns for t in unanswered_before)} turns, answered {len(answered_after)} and solved "
        f"{sum(t.solved == 1 for t in answered_after)}",
        flush=True,
    )


def compare(folder: str, config: Config, queries: Sequence[Query]) -> None:
    """Play the tasks each way and print what came of it."""
    model, codec = load_model(folder), load_codec(folder, config.policy.chat_format, config.policy.chat_date)

    def play(decoding: Decoding, search: SearchConfig | None) -> Played:
        room, seed = config.policy.max_context, config.seed
        policy = LocalPolicy(
            model, codec, name="benchmark", rollout=config.rollout, max_context=room, seed=seed, search=search
        )
        return [episode.trajectory for episode in roll_out(policy, queries, DeskEnvironment(), decoding=decoding)]

    settings, plain = config.evaluation.search, SearchConfig(hints=False)
    for way, decoding, tree in (
        ("greedy", Decoding.GREEDY, settings),
        ("sampled", Decoding.SAMPLED, settings),
        ("without hints", Decoding.SAMPLED, plain),
    ):
        report(way, play(decoding, tree), play(decoding, None))


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="", help="model folder; the embedded model if left out")
    parser.add_argument("--tasks", type=int, default=40, help="number of held-out tasks")
    arguments = parser.parse_args()
    tasks = {"train_queries": 1, "validation_queries": 1, "heldout_queries": arguments.tasks}
    config = Config.model_validate({"data": tasks})
    queries = [q for q in draw_desk_queries(config) if q.split == "heldout"]
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.model or str(prepare_base(config.policy, [], 0, folder)), config, queries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
