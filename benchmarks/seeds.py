"""StepTool against its baselines over seeds: the whole pipeline for each method and seed, on the same held-out tasks.

    python -m benchmarks.seeds --config configs/laptop.yaml --output runs/seeds --seeds 5 --processes 2

For one seed all methods have the same demonstrations, hence the same warm start, the same training tasks in each round
and the same number of updates; each has its own file in configs/methods/, tuned on validation tasks with other seeds.
A run that is complete under --output is not repeated. Prints a table for each tier and writes seeds.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from steptool.evaluation.compare import paired_bootstrap
from steptool.evaluation.results import summarise
from steptool.records import Evaluation
from steptool.records.tables import read_records

METHODS = ("steptool", "ppo_final", "rft")
MEASURES = ("pass_rate", "invalid_call_rate", "recall")
FIRST_SEED = 0


def run(config: dict[str, Any], method: str, seed: int, output: Path) -> None:
    """One run of the pipeline into `output`/<method>-<seed>."""
    name = f"{method}-{seed}"
    if (output / name / "metrics.json").is_file():
        return
    overrides = yaml.safe_load(Path(f"configs/methods/{method}.yaml").read_text(encoding="utf-8"))
    path = output / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**merge(config, overrides), "seed": seed}), encoding="utf-8")
    pyflyte = str(Path(sys.executable).with_name("pyflyte"))
    command = [pyflyte, "run", "workflows/train.py", "train", "--config", str(path), "--output", str(output / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (output / f"{name}.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"{name}: {'finished' if code == 0 else f'FAILED ({code}), see {output / name}.log'}", flush=True)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A mapping with the entries of another laid over it, section by section."""
    both = dict(base)
    for key, value in over.items():
        both[key] = merge(both.get(key, {}), value) if isinstance(value, dict) else value
    return both


def rows_of(output: Path, method: str, seeds: Sequence[int], model: str, decoding: str, tier: str) -> list[Evaluation]:
    """Evaluation rows of a method over its seeds; the seed stands as the repeat."""
    rows = []
    for seed in seeds:
        for row in read_records(output / f"{method}-{seed}" / "evaluations.parquet", Evaluation):
            if (row.model, row.decoding) == (model, decoding) and tier in ("all", row.tier):
                rows.append(replace(row, repeat=seed))
    return rows


def results(output: Path, seeds: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
    """Measures by tier, decoding and method, per seed and together, and StepTool's differences from the others."""
    by_tier: dict[str, Any] = {}
    for tier in ("all", "single", "long"):
        for decoding in ("greedy", "sampled"):
            start = rows_of(output, methods[0], seeds, "warm_start", decoding, tier)
            rows = {"warm_start": start} | {m: rows_of(output, m, seeds, "steptool", decoding, tier) for m in methods}
            by_tier[f"{tier} {decoding}"] = {method: _measures(rows, method, seeds) for method in rows}
    return by_tier


def _measures(rows: dict[str, list[Evaluation]], method: str, seeds: Sequence[int]) -> dict[str, Any]:
    together = summarise(rows[method])["all"]
    parts: dict[str, Any] = {m: [together[m], *together["intervals"][m]] for m in MEASURES}
    parts["by_seed"] = [summarise(_of_seed(rows[method], s), 1)["all"]["pass_rate"] for s in seeds]
    if method != "steptool":
        for measure in MEASURES:
            d = paired_bootstrap(rows["steptool"], rows[method], measure=measure)
            parts[f"steptool_minus_{measure}"] = [d.mean, d.low, d.high]
    else:
        parts["by_seed_minus_warm_start"] = [
            [d.mean, d.low, d.high]
            for s in seeds
            for d in [paired_bootstrap(_of_seed(rows["steptool"], s), _of_seed(rows["warm_start"], s))]
        ]
    return parts


def _of_seed(rows: list[Evaluation], seed: int) -> list[Evaluation]:
    return [row for row in rows if row.repeat == seed]


def table(by_tier: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for title, methods in by_tier.items():
        lines += ["", title, f"{'':12}{'pass rate':>24}{'invalid calls':>24}{'recall':>24}   pass by seed"]
        for method, parts in methods.items():
            cells = "".join(f"{_interval(parts[m]):>24}" for m in MEASURES)
            lines.append(f"{method:12}{cells}   {' '.join(f'{p:.3f}' for p in parts['by_seed'])}")
        for method, parts in methods.items():
            if method != "steptool":
                cells = "".join(f"{_interval(parts[f'steptool_minus_{m}']):>24}" for m in MEASURES)
                lines.append(f"  - {method:8}{cells}   (steptool minus {method}, paired over tasks)")
        gains = methods["steptool"]["by_seed_minus_warm_start"]
        lines.append("  gain over the warm start by seed: " + ", ".join(_interval(g) for g in gains))
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:.3f} [{low:.3f} {high:.3f}]"


def main() -> None:
    """Run what is missing, then print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/laptop.yaml")
    parser.add_argument("--output", default="runs/seeds", type=Path)
    parser.add_argument("--seeds", default=5, type=int)
    parser.add_argument("--processes", default=2, type=int)
    parser.add_argument("--methods", default=METHODS, nargs="+", choices=METHODS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    with ThreadPoolExecutor(args.processes) as pool:
        list(
            pool.map(
                lambda job: run(config, job[0], job[1], args.output), [(m, s) for s in seeds for m in args.methods]
            )
        )
    by_tier = results(args.output, seeds, args.methods)
    (args.output / "seeds.json").write_text(json.dumps(by_tier, indent=1), encoding="utf-8")
    print(table(by_tier))


if __name__ == "__main__":
    main()
