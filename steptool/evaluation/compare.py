"""Paired comparisons of policies over the same queries, and what may be concluded from them.

The difference and its interval come from the paired bootstrap, which resamples queries (never the repeats of a query or
of a judgement: they are averaged first). The p-value is that of a paired permutation test: if both policies were alike,
each query's two results could be swapped. Holm's method corrects the p-values of all comparisons that are made at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from steptool.contracts.columns import Row
from steptool.evaluation import bootstrap
from steptool.evaluation.metrics import groups

LEVEL = 0.05
"""A corrected p-value below this may be called a difference."""


@dataclass(frozen=True)
class Difference:
    """A measure of `a` minus that of `b`, with its 95% interval, over n queries."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two policies on a group of queries."""

    a: str
    b: str
    group: str
    difference: Difference
    p: float
    """Of the permutation test, two-sided."""
    corrected: float
    """The same after Holm's correction over `family` comparisons."""
    family: int = 1

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the corrected p-value is small and the interval leaves 0 out."""
        return self.corrected < LEVEL and (self.difference.low > 0 or self.difference.high < 0)


def paired_bootstrap(
    a: Sequence[Row], b: Sequence[Row], resamples: int = 10_000, seed: int = 0, measure: str = "pass_rate"
) -> Difference:
    """Difference a - b of a measure (see `bootstrap.MEASURES`) between two sets of rows of `evaluations`.

    Repeats of a query are averaged first; then queries are drawn with replacement, the same for both sides, so that
    what makes a query hard for both cancels out. The interval is the 2.5th to the 97.5th percentile of the resamples.
    Raises ValueError unless both sides hold the same queries.
    """
    of_a, of_b = _paired(a, b, measure)
    draws = [
        of_a.resampled(counts) - of_b.resampled(counts)
        for counts in bootstrap.resamples(len(of_a.queries), resamples, seed)
    ]
    low, high = bootstrap.interval(np.concatenate(draws))
    return Difference(of_a.estimate() - of_b.estimate(), low, high, len(of_a.queries))


def permutation_p(
    a: Sequence[Row], b: Sequence[Row], draws: int = 10_000, seed: int = 0, measure: str = "pass_rate"
) -> float:
    """Two-sided p-value of a paired permutation test: how often swapped sides differ at least as much as a and b do.

    The sides of each query are swapped by a coin; (1 + number of draws as extreme) / (1 + draws), never 0 (Phipson and
    Smyth 2010). Raises ValueError unless both sides hold the same queries.
    """
    of_a, of_b = _paired(a, b, measure)
    seen = abs(of_a.estimate() - of_b.estimate())
    extreme = sum(
        int((np.abs(of_a.swapped(of_b, coins) - of_b.swapped(of_a, coins)) >= seen - 1e-12).sum())
        for coins in bootstrap.coins(len(of_a.queries), draws, seed)
    )
    return (1 + extreme) / (1 + draws)


def compare(
    rows: Mapping[str, Sequence[Row]], draws: int = 10_000, seed: int = 0, measure: str = "pass_rate"
) -> list[Comparison]:
    """Every pair of the models, later minus earlier, on each group of `groups`; corrected over all of these.

    `rows`: rows of `evaluations` by model, one way of decoding each. Raises ValueError unless all hold the same
    queries.
    """
    named = [(name, groups(part)) for name, part in rows.items() if part]
    found = []
    for (b, of_b), (a, of_a) in combinations(named, 2):
        for group, part in of_a.items():
            sides = part, of_b.get(group, [])
            difference, p = paired_bootstrap(*sides, draws, seed, measure), permutation_p(*sides, draws, seed, measure)
            found.append(Comparison(a, b, group, difference, p, p))
    return corrected(found)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with their p-values corrected as one family."""
    values = holm([c.p for c in comparisons])
    return [replace(c, corrected=p, family=len(values)) for c, p in zip(comparisons, values, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method (1979), in their order.

    The i-th smallest of m is multiplied by m - i + 1; none becomes smaller than one before it, or larger than 1. It
    holds whatever the comparisons share, as groups that overlap do.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = least
    return found


def _paired(a: Sequence[Row], b: Sequence[Row], measure: str) -> tuple[bootstrap.PerQuery, bootstrap.PerQuery]:
    of_a, of_b = bootstrap.per_query(a, measure), bootstrap.per_query(b, measure)
    if of_a.queries != of_b.queries:
        raise ValueError(_mismatch(set(of_a.queries), set(of_b.queries)))
    return of_a, of_b


def _mismatch(a: set[str], b: set[str]) -> str:
    only_a, only_b = sorted(a - b), sorted(b - a)
    return (
        "a paired comparison needs the same queries on both sides: "
        f"{len(only_a)} only in the first {only_a[:3]}, {len(only_b)} only in the second {only_b[:3]}; "
        "evaluate both on the same queries"
    )
