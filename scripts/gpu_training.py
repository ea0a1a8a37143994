"""Train SmolLM2 by configs/smollm_gpu.yaml for as many rounds as fit into some seconds, and evaluate it.

    python -m scripts.gpu_training --seconds 300     on a GPU, with our own engine
    python -m scripts.gpu_training --small           a few episodes of the embedded model, on a CPU

It calls the library alone, so it runs where Flyte is not installed. `scripts.gpu_check` runs it as one of its parts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "configs" / "smollm_gpu.yaml"
BASE = ROOT / "runs" / "smollm-base"
"""The folder that `scripts.smollm` writes."""
FULL = (
    "rollout.engine=transformers",
    "rollout.cuda_graphs=true",
    "rounds.placement=together",
    "ppo.rounds=12",
    "evaluation.sampled_repeats=1",
)
"""The differences from the configuration: our own engine instead of vLLM, and as many rounds as fit into minutes."""
SMALL = (
    *FULL,
    "policy.base=embedded",
    "policy.max_context=1024",
    "policy.lora_rank=2",
    "data.train_queries=40",
    "data.validation_queries=4",
    "data.heldout_queries=8",
    "warm_start.demonstrations=20",
    "warm_start.steps=3",
    "rollout.episodes=8",
    "ppo.rounds=2",
)


class TimeUpError(Exception):
    """No further round fits."""


@dataclass
class Clock:
    """Seconds since the start, and when the rounds have to end."""

    start: float
    limit: float
    last: float
    rounds: int = 0

    def note(self, name: str) -> dict[str, Any]:
        """A row of the table with the seconds since the last one."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        return {"part": "training", "way": name, "seconds": round(seconds, 1)}

    def count_round(self) -> None:
        """Note that a round has ended. Raises TimeUpError where another one of the same length does not fit."""
        self.rounds += 1
        now = time.monotonic()
        if now + (now - self.last) / self.rounds > self.start + self.limit:
            raise TimeUpError


def train(base: Path, seconds: float, small: bool, folder: Path) -> list[dict[str, Any]]:
    """Data, warm start, rounds until `seconds` are over, and the evaluation of both models; rows of a table."""
    from steptool.config import load_config
    from steptool.data.ingest import ingest
    from steptool.pipeline.episodes import TaskSet
    from steptool.pipeline.learning import RoundInputs, play_and_learn
    from steptool.pipeline.preparation import prepare
    from steptool.records import Query, Trajectory
    from steptool.records.episodes import read_queries
    from steptool.records.tables import read_records, write_records
    from steptool.training.warm_start import warm_start

    overrides = SMALL if small else (*FULL, f"policy.base={base}")
    config = load_config(CONFIGURATION, overrides)
    now = time.monotonic()
    clock = Clock(now, seconds, now)
    data = ingest(config, folder / "data")
    demonstrations = read_records(data.demonstrations_path, Trajectory)
    prepared = prepare(read_queries(data.queries_path), demonstrations, config, folder / "base", is_local=True)
    queries = write_records(folder / "queries.parquet", prepared.queries, Query)
    tasks = TaskSet.write(folder / "tasks", queries, data.demonstrations_path, config)
    rows = [clock.note("data and base model")]
    start = folder / "warm_start"
    start.mkdir()
    warm_start(
        prepared.model, prepared.lessons.encoded, config.warm_start, config.policy, config.seed, start,
        tokens_per_pass=config.ppo.tokens_per_pass,
    )  # fmt: skip
    rows.append(clock.note(f"warm start of {config.warm_start.steps} steps"))
    inputs, kept = RoundInputs(start, tasks, queries, config), folder / "rounds"
    kept.mkdir()
    with suppress(TimeUpError):
        play_and_learn(inputs, 0, config.ppo.rounds, start, None, kept, on_checkpoint=clock.count_round)
    finished = play_and_learn(inputs, 0, clock.rounds, start, None, kept)
    rows.append(clock.note(f"rounds of {config.rollout.episodes} episodes: {clock.rounds}"))
    rows[-1]["seconds a round"] = round(rows[-1]["seconds"] / clock.rounds, 1)
    return rows + _evaluate(config, tasks, {"warm start": start, "StepTool": finished[-1].learned.model}, start, clock)


def _evaluate(config: Any, tasks: Any, models: dict[str, Path], base: Path, clock: Clock) -> list[dict[str, Any]]:
    """Rows with the pass rates of models, and with the difference of the last one and the first."""
    from steptool.artifacts.metrics import format_rate
    from steptool.config import EvaluatedPolicy
    from steptool.evaluation.compare import paired_bootstrap
    from steptool.pipeline.episodes import evaluate
    from steptool.rollout.episode import Decoding

    queries = tasks.read_evaluation_queries(config.evaluation)
    results, rows = [], []
    for name, model in models.items():
        policy = EvaluatedPolicy(name=name.replace(" ", "_"), model=str(model), base=str(base))
        results.append(evaluate(policy, queries, config).rows)
        rows.append(clock.note(f"evaluation of {name} on {len(queries)} tasks"))
        for decoding in Decoding:
            verdicts = [row.passed for row in results[-1] if row.decoding == decoding]
            rows[-1][str(decoding)] = format_rate(verdicts)
    for decoding in Decoding:
        first, last = ([row for row in result if row.decoding == decoding] for result in (results[0], results[-1]))
        gain = paired_bootstrap(last, first)
        interval = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
        rows.append({"part": "training", "way": f"gain of StepTool, {decoding}", "difference": interval})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="the folder that scripts.smollm has written")
    parser.add_argument("--seconds", type=float, default=240.0, help="seconds until the last round ends")
    parser.add_argument("--small", action="store_true", help="a few episodes of the embedded model, on a CPU")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as folder:
        for row in train(options.base, options.seconds, options.small, Path(folder)):
            print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
