"""Rates from stored verdicts of a judge: ToolBench's pass rate and win rate.

The rows are those of the contracts VERDICTS and PREFERENCES. What could not be had is None there and left out here: it
is never a failure. The protocol is that of ToolEval (arXiv 2307.16789), as in StableToolBench (arXiv 2403.07714).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from steptool.artifacts.contracts import Row
from steptool.judge.outcomes import Preference, preferred
from steptool.judge.step_judge import STATUS_SCORE, Status
from steptool.records import StopReason


@dataclass(frozen=True)
class JudgedRate:
    """A rate over queries, judged several times."""

    mean: float
    """Over repeats of the judgement."""
    deviation: float
    """Standard deviation over the repeats (divided by their number): how far the judge agrees with itself. It says
    nothing of how far another choice of queries would change the rate."""
    repeats: int
    queries: int
    missing: int
    """Verdicts that could not be had, over all repeats; they are left out."""


def unanswered(rows: Sequence[Row]) -> set[str]:
    """Queries of these rows of `evaluations` whose episode ended without an answer: no Finish, or given up."""
    return {r["query_id"] for r in rows if r["stop_reason"] != StopReason.FINISHED}


def judged_pass_rate(
    verdicts: Sequence[Row], queries: Collection[str], unanswered: Collection[str] = ()
) -> JudgedRate | None:
    """Pass rate of one model over these queries, by its verdicts; None without any.

    Each repeat is a mean over queries: Solved counts 1, Unsure .5, Unsolved 0. A query of `unanswered` is unsolved
    whatever the judge says. One without a verdict is missing. Raises ValueError for verdicts of several models.
    """
    models = sorted({v["model"] for v in verdicts})
    if len(models) > 1:
        raise ValueError(f"a pass rate is of one model; the {len(verdicts)} verdicts are of {models}")
    status = {(v["repeat"], v["query_id"]): v["status"] for v in verdicts if v["query_id"] in queries}
    repeats = sorted({repeat for repeat, _ in status})
    scores = [[_score(status.get((r, q)), q in unanswered) for q in sorted(queries)] for r in repeats]
    known = [[s for s in row if s is not None] for row in scores]
    rates = [sum(row) / len(row) for row in known if row]
    if not rates:
        return None
    missing = sum(s is None for row in scores for s in row)
    return JudgedRate(float(np.mean(rates)), float(np.std(rates)), len(rates), len(queries), missing)


def _score(status: str | None, unanswered: bool) -> float | None:
    if unanswered:
        return 0.0
    return None if status is None else STATUS_SCORE[Status(status)]


@dataclass(frozen=True)
class WinRate:
    """How often one model's answer was preferred to another's, over queries."""

    model: str
    other: str
    rate: float
    """Wins and half of the ties among the queries that were decided."""
    wins: int
    ties: int
    losses: int
    missing: int
    """Queries without any judgement."""


def win_rates(preferences: Sequence[Row]) -> list[WinRate]:
    """The win rate of each pair of models: for each query the majority over repeats and both orders."""

    def pair(row: Row) -> tuple[str, str]:
        return row["model"], row["other"]

    return [_win_rate(*names, list(rows)) for names, rows in groupby(sorted(preferences, key=pair), pair)]


def _win_rate(model: str, other: str, rows: Sequence[Row]) -> WinRate:
    chosen = list(preferred(rows).values())
    wins, ties, losses = (chosen.count(p) for p in (Preference.MODEL, Preference.TIE, Preference.OTHER))
    decided = wins + ties + losses
    rate = (wins + ties / 2) / decided if decided else 0.5
    return WinRate(model, other, rate, wins, ties, losses, chosen.count(None))
