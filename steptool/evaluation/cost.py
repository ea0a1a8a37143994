"""What a solved task costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from steptool.contracts.columns import Row


class PerSolved(NamedTuple):
    """Cost of all episodes, failed ones included, for each solved task; None: nothing solved, or not known."""

    tokens: float | None
    """Written by the model; None where nobody counted any."""
    seconds: float | None
    """Wall-clock time of the episodes; those of a batch overlap."""
    money: float | None


def cost_per_solved(rows: Sequence[Row]) -> PerSolved:
    """The cost of these rows of `evaluations` over the sum of their verdicts: what was spent in vain counts as well."""
    solved = sum(row["passed"] for row in rows)
    if not solved:
        return PerSolved(None, None, None)
    money = [row["money"] for row in rows]
    spent = None if None in money else sum(money) / solved
    tokens = sum(row["tokens"] for row in rows) / solved
    return PerSolved(tokens or None, sum(row["seconds"] for row in rows) / solved, spent)
