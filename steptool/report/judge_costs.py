"""What a judge was asked and what that cost, as a table of the pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steptool.artifacts.history import total_counts
from steptool.records import Cost

_LABELS = {
    "requests": "requests answered",
    "sent": "HTTP requests sent, further attempts too",
    "cached": "replies that were there already",
    "failed": "requests without a reply",
    "answers of no use": "answers of no use, asked again",
    "votes missing": "votes missing in the end",
    "prompt_tokens": "tokens read",
    "completion_tokens": "tokens written",
    "money": "money, at the configured prices",
}
"""The counts of steptool.judge.votes.VotePanel in the order of the table."""


@dataclass(frozen=True)
class Account:
    """Counts of several parts of a run, and all together."""

    parts: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    """Label, and the count of each part."""


def account(costs: Mapping[str, Iterable[Cost]]) -> Account | None:
    """The account of a judge by part of a run, such as training; None if nobody was asked.

    With several parts, "in all" is one more.
    """
    asked = {part: totals for part, own in costs.items() if (totals := total_counts(own))}
    if not asked:
        return None
    if len(asked) > 1:
        names = {name for totals in asked.values() for name in totals}
        asked["in all"] = {name: sum(totals.get(name, 0) for totals in asked.values()) for name in names}
    lines = ((label, tuple(_shown(t.get(name, 0)) for t in asked.values())) for name, label in _LABELS.items())
    return Account(tuple(asked), tuple(lines))


def _shown(count: float) -> str:
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.4f}"
