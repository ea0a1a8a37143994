"""What stages measure and count, as records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from steptool.records import Cost, Metric


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
