"""Settings of every method, tried on validation tasks with a seed that no comparison uses, as often for each method.

    python -m benchmarks.tuning --output runs/tuning

The trials stand in benchmarks/trials.yaml, and below them further ideas for StepTool. All start from one warm start. A
trial counts by the mean of its greedy and its sampled pass rate; the best one of a method belongs into its file in
configs/methods/. What is complete under --output is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.contest import EVALUATIONS, WARM_START, merge, run_folder, start_folder
from benchmarks.seeds import METHODS, run_all
from steptool.evaluation.compare import ALL, GREEDY, SAMPLED
from steptool.records import Evaluation
from steptool.records.tables import read_records

TRIALS = Path(__file__).with_name("trials.yaml")
SEED = 101
SIZE: Mapping[str, Mapping[str, Any]] = {"evaluation": {"split": "validation", "sampled_repeats": 2}}
"""What differs from the configuration in all trials. They are as long as the runs of the full contest."""


@dataclass(frozen=True)
class Trial:
    """Settings that are tried for a method."""

    method: str
    name: str
    overlay: Mapping[str, Any]
    """What differs from the configuration."""

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.method}-{self.name}".replace(" ", "_")


def read_trials(path: Path = TRIALS, kinds: tuple[str, ...] = ("trials", "ideas")) -> list[Trial]:
    """The trials of a file, in its order."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Trial(method, name, merge(content["start"][method], overlay))
        for kind in kinds
        for method, by_name in content[kind].items()
        for name, overlay in by_name.items()
    ]


def measure(rows: list[Evaluation]) -> dict[str, float]:
    """Pass rates of a model by way of decoding and tier, the mean by which trials are chosen, and redundant calls."""
    tiers = (ALL, *sorted({row.tier for row in rows}))
    rates = {
        f"{tier} {decoding}": fmean(
            row.passed
            for row in rows
            if row.decoding == decoding and tier in (ALL, row.tier) and row.passed is not None
        )
        for tier in tiers
        for decoding in (GREEDY, SAMPLED)
    }
    redundant = sum(row.redundant_calls for row in rows) / max(1, sum(row.calls for row in rows))
    return {"mean": (rates[f"all {GREEDY}"] + rates[f"all {SAMPLED}"]) / 2, **rates, "redundant": redundant}


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """The figures of models as lines of Markdown, in percent."""
    heads = list(next(iter(figures.values())))
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    lines += [f"| {name} | {' | '.join(f'{100 * own[h]:.1f}' for h in heads)} |" for name, own in figures.items()]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the figures of all trials and write tuning.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/laptop.yaml")
    parser.add_argument("--output", default="runs/tuning", type=Path)
    parser.add_argument("--processes", default=2, type=int)
    parser.add_argument("--methods", default=METHODS, nargs="+", choices=METHODS)
    args = parser.parse_args()
    config = merge(yaml.safe_load(Path(args.config).read_text(encoding="utf-8")), SIZE)
    trials = [trial for trial in read_trials() if trial.method in args.methods]
    overlays = {trial.folder: trial.overlay for trial in trials}
    run_all(config, overlays, [SEED], args.output, args.processes)
    start = read_records(start_folder(args.output, SEED) / EVALUATIONS, Evaluation)
    figures = {WARM_START: measure([row for row in start if row.model == WARM_START])}
    for trial in trials:
        rows = read_records(run_folder(args.output, trial.folder, SEED) / EVALUATIONS, Evaluation)
        figures[f"{trial.method}, {trial.name}"] = measure(rows)
    (args.output / "tuning.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
