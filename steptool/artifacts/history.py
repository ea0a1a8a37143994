"""The history of a run: the metrics of all stages so far in one file, and in its metadata what each stage cost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.contracts.columns import Row
from steptool.contracts.tables import read_costs, read_rows, to_table, write_table
from steptool.records import Cost, Metric


def extend(
    previous: str | os.PathLike[str] | None,
    rows: Iterable[Row],
    costs: Sequence[Cost],
    target: str | os.PathLike[str],
) -> Path:
    """Write the previous history (None: there is none) with the stage's rows of Metric and its costs added."""
    before = read_rows(previous, Metric) if previous else []
    spent = read_costs(previous) if previous else []
    return write_table(target, to_table([*before, *rows], Metric), Metric, [*spent, *costs])


def count_rows(stage: str, counts: Mapping[str, Any], round: int = -1) -> list[Row]:
    """Counts, nested or not, as rows of Metric: {"queries": {"kept": 3}} becomes the metric queries/kept."""
    return [
        {"stage": stage, "round": round, "update": -1, "name": name, "value": float(value)}
        for name, value in _flat(counts)
    ]


def total_counts(costs: Iterable[Cost]) -> dict[str, float]:
    """What several stages or shards counted, summed by name."""
    totals: dict[str, float] = {}
    for cost in costs:
        for name, count in cost.counts.items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


def counts_of(rows: Iterable[Row], stage: str) -> dict[str, int]:
    """The counts that `count_rows` wrote for a stage."""
    return {r["name"]: int(r["value"]) for r in rows if r["stage"] == stage and r["update"] == -1}


def _flat(counts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
