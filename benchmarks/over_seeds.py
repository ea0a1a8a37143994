"""Methods that were trained with several seeds and evaluated on the same tasks.

The paired bootstrap over tasks says how sure a difference is for these trained models on other tasks. It does not say
whether other seeds would give the difference again. This module draws both seeds and tasks with replacement,
independently of each other, and the same ones for both sides. Intervals of many comparisons at once are widened as
Holm's method (1979) corrects their p-values: of m comparisons, the one with the i-th smallest p has an interval of
confidence 1 - .05 / (m - i + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steptool.evaluation.compare import (
    ALL,
    CONFIDENCE,
    Difference,
    average_by_query,
    compute_interval,
    divide,
    holm,
    paired_bootstrap,
    permutation_p,
    resample_counts,
)
from steptool.evaluation.measures import pass_rates_by_tries
from steptool.records import Evaluation

Interval = tuple[float, float]
Seeded = Mapping[int, Sequence[Evaluation]]
"""Rows of one method and one way of decoding, by seed."""
_NOT_MEASURED = Difference(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class SeededComparison:
    """A measure of `a` minus that of `b` on a group of tasks, over all seeds."""

    a: str
    b: str
    group: str
    decoding: str
    measure: str
    difference: Difference = _NOT_MEASURED
    """The difference and its uncorrected 95% interval, with tasks resampled and the seeds of a task averaged."""
    over_seeds: Interval = (0.0, 0.0)
    """The uncorrected 95% interval with both tasks and seeds resampled."""
    p: float = 1.0
    """Two-sided p-value of the paired permutation test over tasks."""
    corrected_p: float = 1.0
    """The same after Holm's correction over `family` comparisons."""
    corrected: Interval = (0.0, 0.0)
    """The interval with tasks resampled, widened for the number of comparisons."""
    family: int = 1

    @property
    def is_shown(self) -> bool:
        """Whether a difference is shown after correction."""
        return self.corrected_p < 1.0 - CONFIDENCE and (self.corrected[0] > 0 or self.corrected[1] < 0)


def join(rows: Seeded) -> list[Evaluation]:
    """The rows of all seeds."""
    return [row for own in rows.values() for row in own]


def select_group(rows: Seeded, group: str) -> dict[int, list[Evaluation]]:
    """The rows of one tier, or of all."""
    return {seed: [row for row in own if group in (ALL, row.tier)] for seed, own in rows.items()}


def seed_interval(a: Seeded, b: Seeded, measure: str = "pass_rate", draws: int = 10_000, seed: int = 0) -> Interval:
    """The 95% interval of a - b with tasks and seeds resampled, both sides alike.

    Tasks without a value in one of the runs are left out. Raises ValueError unless both sides have the same seeds, and
    where no task has a value in every run.
    """
    if a.keys() != b.keys():
        raise ValueError(f"expected the same seeds on both sides, got {sorted(a)} and {sorted(b)}")
    parts = [[average_by_query(side[s], measure) for s in a] for side in (a, b)]
    common = set.intersection(*(set(part.queries) for side in parts for part in side))
    if not common:
        raise ValueError(f"{measure}: no task has a value for every seed on both sides")
    common_parts = [[part.select(common) for part in side] for side in parts]
    tops_2SQ = np.array([[part.top_Q for part in side] for side in common_parts])
    bottoms_2SQ = np.array([[part.bottom_Q for part in side] for side in common_parts])
    counts_RS = np.concatenate(list(resample_counts(len(a), draws, seed)))
    estimates, start = [], 0
    for counts_rQ in resample_counts(len(common), draws, seed + 1):
        counts_rS = counts_RS[start : start + len(counts_rQ)]
        start += len(counts_rQ)
        ratios_2r = divide(
            np.einsum("rs,ksq,rq->kr", counts_rS, tops_2SQ, counts_rQ, optimize=True),
            np.einsum("rs,ksq,rq->kr", counts_rS, bottoms_2SQ, counts_rQ, optimize=True),
        )
        estimates.append(ratios_2r[0] - ratios_2r[1])
    return compute_interval(np.concatenate(estimates))


def compare_seeded(
    methods: Mapping[str, Mapping[str, Seeded]],
    method: str,
    groups: Iterable[str],
    measures: Iterable[str] = ("pass_rate",),
    draws: int = 10_000,
) -> list[SeededComparison]:
    """One method minus each of the others, for each way of decoding, group and measure; corrected as one family.

    `methods`: rows by way of decoding and method.
    """
    groups, measures = tuple(groups), tuple(measures)
    comparisons = [
        _compare(rows[method], rows[other], SeededComparison(method, other, group, decoding, measure), draws)
        for decoding, rows in methods.items()
        for group in groups
        for other in rows
        if other != method
        for measure in measures
    ]
    return _correct(comparisons, methods, draws)


def mean_pass_at_k(rows: Seeded) -> dict[int, float]:
    """pass@k of sampled tries by k, the mean over seeds; the tries of a task are those of one seed."""
    by_seed = [pass_rates_by_tries(own) for own in rows.values()]
    sizes = set.intersection(*(set(tries) for tries in by_seed))
    return {k: sum(tries[k][0] for tries in by_seed) / len(by_seed) for k in sorted(sizes)}


def _compare(a: Seeded, b: Seeded, names: SeededComparison, draws: int) -> SeededComparison:
    a, b = select_group(a, names.group), select_group(b, names.group)
    difference = paired_bootstrap(join(a), join(b), draws, measure=names.measure)
    p = permutation_p(join(a), join(b), draws, measure=names.measure)
    return replace(
        names, difference=difference, over_seeds=seed_interval(a, b, names.measure, draws), p=p, corrected_p=p,
        corrected=(difference.low, difference.high),
    )  # fmt: skip


def _correct(
    comparisons: Sequence[SeededComparison], methods: Mapping[str, Mapping[str, Seeded]], draws: int
) -> list[SeededComparison]:
    values, count = holm([c.p for c in comparisons]), len(comparisons)
    ranks = {place: rank for rank, place in enumerate(sorted(range(count), key=lambda i: comparisons[i].p))}
    corrected = []
    for place, (c, value) in enumerate(zip(comparisons, values, strict=True)):
        confidence = 1 - (1 - CONFIDENCE) / (count - ranks[place])
        a, b = (join(select_group(methods[c.decoding][name], c.group)) for name in (c.a, c.b))
        wide = paired_bootstrap(a, b, draws, measure=c.measure, confidence=confidence)
        corrected.append(replace(c, corrected_p=value, corrected=(wide.low, wide.high), family=count))
    return corrected
