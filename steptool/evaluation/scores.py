"""Paired comparisons of models in a table of scores of any origin."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from steptool.evaluation.compare import CONFIDENCE, LEVEL, Floats, PerQuery, holm, resample_difference, swap_p

COLUMNS = ("task", "model", "score")
"""Columns that a table needs. Each further row of a task and a model is a repeat, whatever its other columns say."""
RESULT = ("a", "b", "mean_a", "mean_b", "difference", "low", "high", "p", "corrected", "shown", "tasks", "left_out")
"""Columns of the result."""


def compare_scores(
    scores: Any,
    pairs: Iterable[tuple[str, str]] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> pd.DataFrame:
    """Differences between the mean scores of models on the same tasks, with intervals and corrected p-values.

    `scores` is a DataFrame, a pyarrow table, a list of rows as dictionaries, or a dictionary of columns, with the
    columns of COLUMNS; scores are numbers of any size, and a missing one is left out. `pairs` names
    (minuend, subtrahend); None: every later model minus every earlier one, in the order of their first rows. A row of
    the result is a pair:

    a, b: the two models. mean_a, mean_b: their means over the `tasks` that both have a score of; repeats of a task are
    averaged first. difference, low, high: mean_a - mean_b, and its interval by the paired bootstrap over tasks
    (percentiles, `draws` resamples). p: two-sided, of the paired permutation test over tasks. corrected: p by Holm's
    method over all pairs. shown: whether `corrected` is below 0.05 and the interval leaves 0 out. left_out: tasks that
    only one of the two has a score of.

    Raises ValueError for a missing column, a row without its task or model, an infinite score, an unknown model, a
    model against itself, two models without a common task, and less than one draw.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    means = _average_by_task(scores.to_pandas() if hasattr(scores, "to_pandas") else pd.DataFrame(scores))
    model_pairs = [(a, b) for b, a in combinations(means.columns, 2)] if pairs is None else list(pairs)
    table = pd.DataFrame([_compare_pair(means, a, b, draws, seed, confidence) for a, b in model_pairs])
    if table.empty:
        raise ValueError(f"a comparison needs two models, got {list(means.columns)}")
    table["corrected"] = holm(table["p"].tolist())
    table["shown"] = (table["corrected"] < LEVEL) & ((table["low"] > 0) | (table["high"] < 0))
    return table[list(RESULT)]


def _average_by_task(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean score [tasks, models], NaN where a model has none."""
    if missing := [name for name in COLUMNS if name not in scores.columns]:
        raise ValueError(f"expected the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    for name in ("task", "model"):
        if rows := int(scores[name].isna().sum()):
            raise ValueError(f"expected a {name} in every row, got {rows} rows without: name it or leave the rows out")
    values = pd.to_numeric(scores["score"])
    if np.isinf(values).any():
        raise ValueError("expected finite scores or missing ones, got an infinite one")
    table = scores.assign(score=values).dropna(subset=["score"])
    means = table.pivot_table(index="task", columns="model", values="score", aggfunc="mean")
    return means[list(dict.fromkeys(table["model"]))]


def _compare_pair(
    means: pd.DataFrame, a: str, b: str, draws: int, seed: int, confidence: float
) -> dict[str, str | float | int]:
    if unknown := {a, b} - {*means.columns}:
        raise ValueError(f"no scores of {', '.join(sorted(map(str, unknown)))}: the table has {list(means.columns)}")
    if a == b:
        raise ValueError(f"expected two models in a pair, got {a} twice")
    pair_means = means[[a, b]].dropna(how="all")
    common = pair_means.dropna()
    if common.empty:
        raise ValueError(f"{a} and {b} have no task in common: score both on the same tasks")
    of_a, of_b = (_make_per_task(common[model]) for model in (a, b))
    difference = resample_difference(of_a, of_b, draws, seed, confidence)
    return {
        "a": a,
        "b": b,
        "mean_a": of_a.ratio(),
        "mean_b": of_b.ratio(),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": swap_p(of_a, of_b, draws, seed),
        "tasks": difference.n,
        "left_out": len(pair_means) - len(common),
    }


def _make_per_task(column: pd.Series[float]) -> PerQuery:
    values: Floats = np.asarray(column, dtype=np.float64)
    return PerQuery(tuple(column.index.astype(str)), values, np.ones_like(values))
