"""StepTool against its baselines over seeds: every method from the same warm starts, on the same tasks.

    python -m benchmarks.seeds --size full --output runs/seeds --processes 2
    python -m benchmarks.seeds --size small --methods steptool rft grpo --output runs/some

For one seed all methods have the same demonstrations, the same warm start, and draw as many episodes in as many rounds
from the same training tasks; each has its own file in configs/methods/, tuned on validation tasks with another seed
(benchmarks/tuning.py). What is complete under --output is not repeated. Prints measures and comparisons for each tier
and way of decoding, corrected as one family, and writes seeds.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contest import EVALUATIONS, WARM_START, make_start, merge, run_folder, run_method, start_folder
from benchmarks.over_seeds import (
    Seeded,
    SeededComparison,
    compare_seeded,
    join,
    mean_pass_at_k,
    select_group,
)
from steptool.evaluation.compare import ALL, GREEDY, SAMPLED, format_p, format_points
from steptool.evaluation.results import summarise_measures
from steptool.records import Evaluation
from steptool.records.tables import read_records
from steptool.report.elements import Interval, draw_interval_bars

METHODS = ("steptool", "ppo_final", "rft", "rft_sharp", "grpo", "gigpo", "eto", "archer")
"""The files of configs/methods/. The first is the one that the others are compared with."""
MEASURES = ("pass_rate", "recall", "invalid_call_rate", "redundant_call_rate")


@dataclass(frozen=True)
class Size:
    """How much a contest costs."""

    seeds: int
    overlay: Mapping[str, Mapping[str, Any]]
    """What differs from the configuration."""


SIZES = {
    "full": Size(5, {"data": {"heldout_queries": 200}, "evaluation": {"sampled_repeats": 8}}),
    "small": Size(
        5,
        {
            "data": {"heldout_queries": 200},
            "warm_start": {"steps": 130, "slips": 0.2, "shortcuts": 0.45},
            "ppo": {"rounds": 6, "value_warmup_rounds": 1, "epochs": 2},
            "evaluation": {"sampled_repeats": 4},
        },
    ),
    "trial": Size(
        1,
        {
            "data": {"train_queries": 64, "validation_queries": 24, "heldout_queries": 24},
            "warm_start": {"demonstrations": 200, "steps": 20},
            "rollout": {"episodes": 16},
            "ppo": {"rounds": 2, "value_warmup_rounds": 1, "batch_size": 8},
            "evaluation": {"sampled_repeats": 2},
        },
    ),
}


def read_method(method: str) -> dict[str, Any]:
    """What differs from the configuration for a method."""
    overlay: dict[str, Any] = yaml.safe_load(Path(f"configs/methods/{method}.yaml").read_text(encoding="utf-8"))
    return overlay


def run_all(
    config: Mapping[str, Any], overlays: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], output: Path, count: int
) -> None:
    """Make what is missing of the starts, then of the methods, in so many processes."""
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        _wait(pool, make_start, [(config, seed, output) for seed in seeds])
        jobs = [(merge(config, overlay), name, seed, output) for seed in seeds for name, overlay in overlays.items()]
        _wait(pool, run_method, jobs)


def _wait(pool: ProcessPoolExecutor, work: Callable[..., None], jobs: Sequence[tuple[Any, ...]]) -> None:
    for future in as_completed([pool.submit(work, *job) for job in jobs]):
        future.result()


def read_rows(output: Path, seeds: Sequence[int], methods: Sequence[str], decoding: str) -> dict[str, Seeded]:
    """Evaluation rows by model and seed: the warm start and every method."""
    by_model: dict[str, Seeded] = {}
    for name in (WARM_START, *methods):
        own = {}
        for seed in seeds:
            folder = start_folder(output, seed) if name == WARM_START else run_folder(output, name, seed)
            rows = read_records(folder / EVALUATIONS, Evaluation)
            own[seed] = [row for row in rows if (row.model, row.decoding) == (name, decoding)]
        by_model[name] = own
    return by_model


def measure(rows: Seeded, draws: int) -> dict[str, Any]:
    """The measures of a method: each with its interval over tasks, pass@k, and the pass rate of every seed."""
    together = summarise_measures(join(rows), draws)["all"]
    return {
        **{name: [together[name], *together["intervals"][name]] for name in MEASURES},
        "pass_at_k": mean_pass_at_k(rows),
        "by_seed": [summarise_measures(own, 1)["all"]["pass_rate"] for own in rows.values()],
    }


def results(output: Path, seeds: Sequence[int], methods: Sequence[str], draws: int = 10_000) -> dict[str, Any]:
    """Measures by way of decoding, tier and method, and the comparisons, all of them corrected as one family."""
    rows = {decoding: read_rows(output, seeds, methods, decoding) for decoding in (GREEDY, SAMPLED)}
    tiers = sorted({row.tier for row in join(rows[GREEDY][methods[0]])})
    groups = [ALL, *tiers] if len(tiers) > 1 else [ALL]
    comparisons = compare_seeded(rows, methods[0], groups, draws=draws)
    tables: dict[str, Any] = {}
    for group in groups:
        for decoding, by_method in rows.items():
            own = [c for c in comparisons if (c.group, c.decoding) == (group, decoding)]
            tables[f"{group} {decoding}"] = {
                "methods": {name: measure(select_group(part, group), draws) for name, part in by_method.items()},
                "comparisons": [asdict(c) | {"shown": c.is_shown} for c in own],
                "lines": [describe(c) for c in own],
            }
    return tables


def describe(c: SeededComparison) -> str:
    """A comparison in one line, in points."""
    d, (low, high), (seeds_low, seeds_high) = c.difference, c.corrected, c.over_seeds
    return (
        f"{c.a} - {c.b:10} {format_points(d.mean):>6} [{format_points(d.low)} {format_points(d.high)}], "
        f"corrected [{format_points(low)} {format_points(high)}], "
        f"over seeds too [{format_points(seeds_low)} {format_points(seeds_high)}], "
        f"{format_p(c.corrected_p)} of {c.family}{', shown' if c.is_shown else ''}"
    )


def table(tables: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = []
    for title, part in tables.items():
        heads = "".join(f"{name.replace('_', ' '):>26}" for name in MEASURES)
        lines += ["", title, f"{'':12}{heads}   pass@k; pass by seed"]
        for method, figures in part["methods"].items():
            cells = "".join(f"{_write_interval(figures[name]):>26}" for name in MEASURES)
            tries = " ".join(f"@{k} {share:.3f}" for k, share in figures["pass_at_k"].items() if k > 1)
            by_seed = " ".join(f"{share:.3f}" for share in figures["by_seed"])
            lines.append(f"{method:12}{cells}   {tries}{'; ' if tries else ''}{by_seed}")
        lines += [f"  {line}" for line in part["lines"]]
    return "\n".join(lines)


_STYLE = (
    "text{font:11px sans-serif;fill:#222}.end{text-anchor:end}.middle{text-anchor:middle}.group{font-weight:bold}"
    ".grid{stroke:#ddd}.bar{fill:#b8c4d0}.ours{fill:#2f6fb3}line,path{stroke:#444}"
)


def picture(tables: Mapping[str, Any], method: str) -> str:
    """Pass rates by tier, way of decoding and model, with their intervals, as an SVG image; one method stands out."""
    titles = [title for title in tables if not title.startswith(f"{ALL} ")] or list(tables)
    rows = [
        Interval(title, name.replace("_", " "), mean, low, high, "ours" if name == method else "other")
        for title in titles
        for name, figures in tables[title]["methods"].items()
        for mean, low, high in [figures["pass_rate"]]
    ]
    chart = draw_interval_bars("Pass rate", rows)
    image = chart[chart.index("<svg") : chart.index("</svg>")]
    head, _, body = image.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f'{head}><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'


def _write_interval(values: Sequence[float | None]) -> str:
    mean, low, high = values
    return "-" if mean is None else f"{mean:.3f} [{low:.3f} {high:.3f}]"


def main() -> None:
    """Run what is missing, then print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/laptop.yaml")
    parser.add_argument("--output", default="runs/seeds", type=Path)
    parser.add_argument("--chart", type=Path, help="file that receives the pass rates as an SVG image")
    parser.add_argument("--size", default="full", choices=SIZES)
    parser.add_argument("--split", default="heldout", choices=("validation", "heldout"))
    parser.add_argument("--seeds", type=int, help="number of seeds, in place of that of the size")
    parser.add_argument("--first-seed", default=0, type=int)
    parser.add_argument("--processes", default=2, type=int)
    parser.add_argument("--methods", default=METHODS, nargs="+", choices=METHODS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    size = SIZES[args.size]
    config = merge(yaml.safe_load(Path(args.config).read_text(encoding="utf-8")), size.overlay)
    config = merge(config, {"evaluation": {"split": args.split}})
    seeds = range(args.first_seed, args.first_seed + (args.seeds or size.seeds))
    run_all(config, {name: read_method(name) for name in args.methods}, seeds, args.output, args.processes)
    tables = results(args.output, seeds, args.methods)
    (args.output / "seeds.json").write_text(json.dumps(tables, indent=1), encoding="utf-8")
    if args.chart:
        args.chart.write_text(picture(tables, args.methods[0]), encoding="utf-8")
    print(table(tables))


if __name__ == "__main__":
    main()
