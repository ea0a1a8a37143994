"""Paired comparison of two policies over the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steptool.contracts import Row
from steptool.evaluation import bootstrap


@dataclass(frozen=True)
class Difference:
    """A measure of `a` minus that of `b`, with its 95% interval, over n queries."""

    mean: float
    low: float
    high: float
    n: int


def paired_bootstrap(
    a: Sequence[Row], b: Sequence[Row], resamples: int = 10_000, seed: int = 0, measure: str = "pass_rate"
) -> Difference:
    """Difference a - b of a measure (see `bootstrap.MEASURES`) between two sets of rows of `evaluations`.

    Repeats of a query are averaged first; then queries are drawn with replacement, the same for both sides, so that
    what makes a query hard for both cancels out. The interval is the 2.5th to the 97.5th percentile of the resamples.
    Raises ValueError unless both sides hold the same queries.
    """
    of_a, of_b = bootstrap.per_query(a, measure), bootstrap.per_query(b, measure)
    if of_a.queries != of_b.queries:
        raise ValueError(_mismatch(set(of_a.queries), set(of_b.queries)))
    draws = [
        of_a.resampled(counts) - of_b.resampled(counts)
        for counts in bootstrap.resamples(len(of_a.queries), resamples, seed)
    ]
    low, high = bootstrap.interval(np.concatenate(draws))
    return Difference(of_a.estimate() - of_b.estimate(), low, high, len(of_a.queries))


def _mismatch(a: set[str], b: set[str]) -> str:
    only_a, only_b = sorted(a - b), sorted(b - a)
    return (
        "a paired comparison needs the same queries on both sides: "
        f"{len(only_a)} only in the first {only_a[:3]}, {len(only_b)} only in the second {only_b[:3]}; "
        "evaluate both on the same queries"
    )
