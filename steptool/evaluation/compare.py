"""Paired comparisons of policies over the same queries, and what may be concluded from them.

A measure is a ratio over queries. The difference of two and its interval come from the paired bootstrap, which
resamples queries (never the repeats of a query or of a judgement: they are averaged first). The p-value is that of a
paired permutation test: if both policies were alike, each query's two results could be swapped. Holm's method corrects
the p-values of all comparisons that are made at once. Queries without a verdict on one side are left out and counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

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
ALL = "all"
"""Name of the group that holds every query."""
GREEDY, SAMPLED = "greedy", "sampled"
"""The two ways of decoding."""
LEVEL = 0.05
"""Significance level: a difference is shown only if its corrected p-value is below this."""


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


def average_by_query(rows: Sequence[Evaluation], measure: str) -> PerQuery:
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


def resample_counts(queries: int, count: int, seed: int) -> Iterator[Floats]:
    """How often each query is drawn [R, Q] in each of `count` resamples with replacement, in chunks of rows."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // queries)
    for start in range(0, count, size):
        rows = min(size, count - start)
        positions = rng.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        yield np.bincount(positions.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)


def toss_coins(queries: int, count: int, seed: int) -> Iterator[Floats]:
    """`count` rows of one toss for each query [R, Q], 0 or 1, in chunks of rows."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // queries)
    for start in range(0, count, size):
        yield rng.integers(2, size=(min(size, count - start), queries)).astype(np.float64)


def compute_interval(estimates_R: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
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


@dataclass(frozen=True)
class Difference:
    """A measure of `a` minus that of `b`, with its 95% interval, over n queries."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Changes:
    """Numbers of queries by the policy that solves them, in more than half of their repeats."""

    fixed: int
    """Only `a` solves them."""
    broken: int
    """Only `b` solves them."""
    both: int
    neither: int


@dataclass(frozen=True)
class Comparison:
    """The pass rates of two policies on a group of queries, with one way of decoding."""

    a: str
    b: str
    group: str
    difference: Difference
    p: float
    """Two-sided p-value of the permutation test."""
    corrected: float
    """The same after Holm's correction over `family` comparisons."""
    family: int = 1
    decoding: str = GREEDY
    changes: Changes = Changes(0, 0, 0, 0)
    left_out: int = 0
    """Queries of the group without a verdict on one side."""

    @property
    def is_shown(self) -> bool:
        """Whether a difference is shown: the corrected p-value is small and the interval leaves 0 out."""
        return self.corrected < LEVEL and (self.difference.low > 0 or self.difference.high < 0)


def split_groups(rows: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """The rows by group: all, then each split and each tier where there are several."""
    parts = {ALL: list(rows)} if rows else {}
    for column in ("split", "tier"):
        values = dict.fromkeys(getattr(r, column) for r in rows)
        if len(values) > 1:
            parts |= {value or f"no {column}": [r for r in rows if getattr(r, column) == value] for value in values}
    return parts


def paired_bootstrap(
    a: Sequence[Evaluation],
    b: Sequence[Evaluation],
    resamples: int = 10_000,
    seed: int = 0,
    measure: str = "pass_rate",
    confidence: float = CONFIDENCE,
) -> Difference:
    """Difference a - b of a measure (see `MEASURES`) between two sets of evaluations.

    Repeats of a query are averaged first; then queries are drawn with replacement, the same for both sides, so that
    what makes a query hard for both cancels out. The interval holds the middle `confidence` of the resamples.
    Raises ValueError unless both sides hold the same queries, and where no query has a value on both sides.
    """
    return resample_difference(*_pair(a, b, measure), resamples, seed, confidence)


def resample_difference(of_a: PerQuery, of_b: PerQuery, resamples: int, seed: int, confidence: float) -> Difference:
    """The difference of `paired_bootstrap`, between two sides that hold the same queries."""
    draws = [
        of_a.resample(counts) - of_b.resample(counts) for counts in resample_counts(len(of_a.queries), resamples, seed)
    ]
    low, high = compute_interval(np.concatenate(draws), confidence)
    return Difference(of_a.ratio() - of_b.ratio(), low, high, len(of_a.queries))


def permutation_p(
    a: Sequence[Evaluation], b: Sequence[Evaluation], draws: int = 10_000, seed: int = 0, measure: str = "pass_rate"
) -> float:
    """Two-sided p-value of a paired permutation test: how often swapped sides differ at least as much as a and b do.

    The sides of each query are swapped by a coin; (1 + number of draws as extreme) / (1 + draws), never 0 (Phipson and
    Smyth 2010). Raises ValueError as `paired_bootstrap` does.
    """
    return swap_p(*_pair(a, b, measure), draws, seed)


def swap_p(of_a: PerQuery, of_b: PerQuery, draws: int, seed: int) -> float:
    """The p-value of `permutation_p`, between two sides that hold the same queries."""
    observed_difference = abs(of_a.ratio() - of_b.ratio())
    extreme = sum(
        int((np.abs(of_a.swap(of_b, coins) - of_b.swap(of_a, coins)) >= observed_difference - 1e-12).sum())
        for coins in toss_coins(len(of_a.queries), draws, seed)
    )
    return (1 + extreme) / (1 + draws)


def find_measurable_queries(a: Sequence[Evaluation], b: Sequence[Evaluation], measure: str = "pass_rate") -> set[str]:
    """Queries that have a value of the measure on both sides; only they can be compared."""
    column = MEASURES[measure][0]
    sides = ({row.query_id for row in rows if getattr(row, column) is not None} for rows in (a, b))
    return set.intersection(*sides)


def compare(
    rows: Mapping[str, Sequence[Evaluation]],
    draws: int = 10_000,
    seed: int = 0,
    pairs: Iterable[tuple[str, str]] | None = None,
    decodings: Sequence[str] = (GREEDY,),
) -> list[Comparison]:
    """Pass rates of pairs of models, on each group of `split_groups` and with each decoding; corrected over all.

    `rows`: evaluations by model. `pairs`: (minuend, subtrahend); every later model minus every earlier one if
    None. Queries without a verdict on both sides are left out, and so is a pair without any query to compare. Raises
    ValueError for two models that have no query in common.
    """
    names = [name for name, model_rows in rows.items() if model_rows]
    chosen_pairs = [(a, b) for b, a in combinations(names, 2)] if pairs is None else pairs
    comparisons = [
        comparison
        for a, b in chosen_pairs
        for comparison in _compare_pair(a, b, rows.get(a, ()), rows.get(b, ()), draws, seed, decodings)
    ]
    return correct_p_values(comparisons)


def _compare_pair(
    a: str,
    b: str,
    of_a: Sequence[Evaluation],
    of_b: Sequence[Evaluation],
    draws: int,
    seed: int,
    decodings: Sequence[str],
) -> Iterator[Comparison]:
    groups_a, groups_b = split_groups(of_a), split_groups(of_b)
    for group, part in groups_a.items():
        for decoding in decodings:
            sides = [[r for r in rows if r.decoding == decoding] for rows in (part, groups_b.get(group, []))]
            query_ids = [{r.query_id for r in rows} for rows in sides]
            if all(query_ids) and not query_ids[0] & query_ids[1]:
                raise ValueError(_describe_mismatch(*query_ids))
            common = find_measurable_queries(sides[0], sides[1])
            if not common:
                continue
            first, second = ([r for r in rows if r.query_id in common] for rows in sides)
            difference = paired_bootstrap(first, second, draws, seed)
            p = permutation_p(first, second, draws, seed)
            changes, left_out = _count_changes(first, second), len(query_ids[0] | query_ids[1]) - len(common)
            yield Comparison(a, b, group, difference, p, p, 1, decoding, changes, left_out)


def _count_changes(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> Changes:
    pairs = list(zip(*(average_by_query(rows, "pass_rate").top_Q > 0.5 for rows in (b, a)), strict=True))
    return Changes(*(pairs.count(pair) for pair in ((False, True), (True, False), (True, True), (False, False))))


def correct_p_values(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with their p-values corrected as one family."""
    values = holm([c.p for c in comparisons])
    return [replace(c, corrected=p, family=len(values)) for c, p in zip(comparisons, values, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method (1979), in their order.

    The i-th smallest of m is multiplied by m - i + 1. No value becomes smaller than the one before it, or larger than
    1. The method holds for comparisons that depend on each other, such as those of groups that overlap.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    values, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        values[place] = least
    return values


def _pair(a: Sequence[Evaluation], b: Sequence[Evaluation], measure: str) -> tuple[PerQuery, PerQuery]:
    queries_a, queries_b = ({row.query_id for row in rows} for rows in (a, b))
    if queries_a != queries_b:
        raise ValueError(_describe_mismatch(queries_a, queries_b))
    of_a, of_b = average_by_query(a, measure), average_by_query(b, measure)
    common = set(of_a.queries) & set(of_b.queries)
    if not common:
        raise ValueError(f"{measure}: none of the {len(queries_a)} queries has a value on both sides")
    return of_a.select(common), of_b.select(common)


def _describe_mismatch(a: set[str], b: set[str]) -> str:
    only_a, only_b = sorted(a - b), sorted(b - a)
    return (
        "a paired comparison needs the same queries on both sides: "
        f"{len(only_a)} only in the first {only_a[:3]}, {len(only_b)} only in the second {only_b[:3]}; "
        "evaluate both on the same queries"
    )


def write_conclusion(c: Comparison) -> str:
    """One sentence on a comparison of pass rates: what was seen, how sure it is, and what may be concluded."""
    d, size = c.difference, format_points(abs(c.difference.mean))
    where = f"{d.n} task{'' if d.n == 1 else 's'}" + ("" if c.group == ALL else f" of the group {c.group}")
    amount = f"{size} point{'' if size == '1' else 's'} {'more' if d.mean > 0 else 'fewer'} than {c.b}"
    sample_text = f"as many as {c.b}" if size == "0" else amount
    sure = f"95% interval {format_points(d.low)} to {format_points(d.high)}, {format_p(c.corrected)}{_name_family(c)}"
    return f"{c.a} solves {sample_text} on {where} ({sure}): {_state_verdict(c)}."


def _state_verdict(c: Comparison) -> str:
    if c.is_shown:
        return f"{c.a} is {'better' if c.difference.mean > 0 else 'worse'} here than {c.b}"
    if c.difference.low > 0 or c.difference.high < 0:
        context = f"among {c.family} comparisons" if c.family > 1 else "in so few tasks"
        return f"no difference is shown, since chance may cause one like it {context}"
    reach = format_points(max(abs(c.difference.low), abs(c.difference.high)))
    return "no difference is shown" + (f"; one of up to {reach} points is possible" if reach != "0" else "")


def _name_family(c: Comparison) -> str:
    return f" corrected for {c.family} comparisons" if c.family > 1 else ""


def format_p(p: float) -> str:
    """A p-value as p = 0.02 or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def format_points(difference: float) -> str:
    """A difference of shares in percentage points: 0.304 as 30, 0.013 as 1.3."""
    value = difference * 100
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}".removesuffix(".0")
    return {"-0": "0"}.get(text, text).replace("-", "−")
