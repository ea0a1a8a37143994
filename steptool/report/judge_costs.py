"""The requests to a judge and their cost, as a table of the pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steptool.artifacts.metrics import total_counts
from steptool.records import Cost

_LABELS = {
    "requests": "requests answered",
    "sent": "HTTP requests sent, further attempts included",
    "cached": "replies from the cache",
    "failed": "requests without a reply",
    "answers of no use": "replies that could not be used, asked again",
    "votes missing": "votes missing in the end",
    "prompt_tokens": "tokens read",
    "completion_tokens": "tokens written",
    "money": "money, at the configured prices",
}
"""The counts of a judge in the order of the table, with their labels."""


@dataclass(frozen=True)
class JudgeCosts:
    """Counts by part of a run, and in all."""

    parts: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    """Label, and the count of each part."""


def tabulate_judge_costs(costs: Mapping[str, Iterable[Cost]]) -> JudgeCosts | None:
    """The table of a judge by part of a run, such as training; None if no request was made.

    With several parts, "in all" is a further one.
    """
    totals = {part: counts for part, part_costs in costs.items() if (counts := total_counts(part_costs))}
    if not totals:
        return None
    if len(totals) > 1:
        names = {name for counts in totals.values() for name in counts}
        totals["in all"] = {name: sum(counts.get(name, 0) for counts in totals.values()) for name in names}
    lines = (
        (label, tuple(_format(counts.get(name, 0)) for counts in totals.values())) for name, label in _LABELS.items()
    )
    return JudgeCosts(tuple(totals), tuple(lines))


def _format(count: float) -> str:
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.4f}"
