"""The history of a run: the metrics of all stages so far in one file, and in its metadata what each stage cost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.contracts.tables import read_costs, read_records, write_records
from steptool.records import Cost, Metric


def extend(
    previous: str | os.PathLike[str] | None,
    metrics: Iterable[Metric],
    costs: Sequence[Cost],
    target: str | os.PathLike[str],
) -> Path:
    """Write the previous history (None: there is none) with a stage's metrics and costs added."""
    before = read_records(previous, Metric) if previous else []
    spent = read_costs(previous) if previous else []
    return write_records(target, [*before, *metrics], Metric, [*spent, *costs])


def update_metrics(log: Iterable[Mapping[str, float]], stage: str, round_index: int) -> list[Metric]:
    """The figures of each optimizer step as metrics; `update` counts the steps from 0."""
    return [
        Metric(stage, round_index, update, name, float(value))
        for update, figures in enumerate(log)
        for name, value in figures.items()
    ]


def count_metrics(stage: str, counts: Mapping[str, Any], round_index: int = -1) -> list[Metric]:
    """Counts of a whole stage, nested or not, as metrics: {"queries": {"kept": 3}} becomes queries/kept."""
    return [Metric(stage, round_index, -1, name, float(value)) for name, value in _flatten(counts)]


def counts_of(metrics: Iterable[Metric], stage: str) -> dict[str, int]:
    """The counts that `count_metrics` made of a stage."""
    return {m.name: int(m.value) for m in metrics if m.stage == stage and m.update == -1}


def total_counts(costs: Iterable[Cost]) -> dict[str, float]:
    """What several stages or shards counted, summed by name."""
    totals: dict[str, float] = {}
    for cost in costs:
        for name, count in cost.counts.items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


def _flatten(counts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
