"""Measures as ratios over queries, the bootstrap that resamples the queries, and intervals of shares."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steptool.records import Evaluation

Floats = npt.NDArray[np.float64]

MEASURES: Mapping[str, tuple[str, str | None]] = {
    "pass_rate": ("passed", None),
    "recall": ("recall", None),
    "invalid_call_rate": ("invalid_calls", "calls"),
    "redundant_call_rate": ("redundant_calls", "calls"),
    "steps": ("steps", None),
    "tokens": ("tokens", None),
}
"""Each measure as (numerator, denominator) of columns of `evaluations`; None: per episode."""

CONFIDENCE = 0.95
_Z95 = 1.959964
_CHUNK = 4_000_000
"""Draws made at once."""


@dataclass(frozen=True)
class PerQuery:
    """Numerators and denominators of a measure by query, repeats of a query averaged; `queries` are sorted.

    Only queries with a value are in it. The measure is sum(top_Q) / sum(bottom_Q), and 0 where the denominators are 0.
    """

    queries: tuple[str, ...]
    top_Q: Floats
    bottom_Q: Floats

    def ratio(self) -> float:
        """The measure over all queries; 0 without queries."""
        return float(divide(self.top_Q.sum(), self.bottom_Q.sum()))

    def estimate(self) -> float | None:
        """The measure over all queries; None where no query has a value, so that it cannot be measured."""
        return self.ratio() if self.queries else None

    def select(self, queries: Collection[str]) -> PerQuery:
        """The same for some of the queries."""
        places = [place for place, query in enumerate(self.queries) if query in queries]
        return PerQuery(tuple(self.queries[place] for place in places), self.top_Q[places], self.bottom_Q[places])

    def resample(self, counts_RQ: Floats) -> Floats:
        """The measure [R] over each resample of the queries."""
        return divide(counts_RQ @ self.top_Q, counts_RQ @ self.bottom_Q)

    def swap(self, other: PerQuery, coins_RQ: Floats) -> Floats:
        """The measure [R] if each query whose coin shows 1 has the results of `other` instead of its own."""
        top = self.top_Q.sum() + coins_RQ @ (other.top_Q - self.top_Q)
        return divide(top, self.bottom_Q.sum() + coins_RQ @ (other.bottom_Q - self.bottom_Q))


def per_query(rows: Sequence[Evaluation], measure: str) -> PerQuery:
    """A measure by query, over the rows that have a value. Raises ValueError for an unknown measure or no rows."""
    if measure not in MEASURES:
        raise ValueError(f"unknown measure '{measure}': expected one of {', '.join(MEASURES)}")
    if not rows:
        raise ValueError(f"{measure}: there are no evaluations to take it from")
    top, bottom = MEASURES[measure]
    repeats: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        value = getattr(row, top)
        if value is not None:
            repeats[row.query_id].append((value, 1.0 if bottom is None else getattr(row, bottom)))
    queries = tuple(sorted(repeats))
    means_Q2 = np.array([np.mean(repeats[q], axis=0) for q in queries], dtype=np.float64).reshape(-1, 2)
    return PerQuery(queries, means_Q2[:, 0], means_Q2[:, 1])


def divide(top: npt.ArrayLike, bottom: npt.ArrayLike) -> Floats:
    """top / bottom, 0 where bottom is 0."""
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    quotient: Floats = np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)
    return quotient


def resamples(queries: int, count: int, seed: int) -> Iterator[Floats]:
    """How often each query is drawn [R, Q] in each of `count` resamples with replacement, in chunks of rows."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // queries)
    for start in range(0, count, size):
        rows = min(size, count - start)
        positions = rng.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        yield np.bincount(positions.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)


def coins(queries: int, count: int, seed: int) -> Iterator[Floats]:
    """`count` rows of one toss for each query [R, Q], 0 or 1, in chunks of rows."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // queries)
    for start in range(0, count, size):
        yield rng.integers(2, size=(min(size, count - start), queries)).astype(np.float64)


def interval(estimates_R: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval that holds this share of the resampled estimates."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(estimates_R, [tail, 100 - tail])
    return float(low), float(high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share among n; it is sensible at 0 and 1 too."""
    centre = share + _Z95**2 / (2 * n)
    reach = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
