"""Verdicts on answers: how they are stored, and ToolBench's pass rate and win rate from them.

The rows are those of the contracts Verdict and Preference. A missing verdict is None; rates leave it out, since it is
not a failure. The protocol is that of ToolEval (arXiv 2307.16789), as StableToolBench (arXiv 2403.07714) uses it.

StableToolBench's folder pass_rate_results holds a folder for each model with one JSON file per test set, <test
set>_<model>.json. For each query's number it has the judge's status by repeat: {"is_solved": {"0":
"AnswerStatus.Solved", ...}}. The rows get the ids that the data source `toolbench` gives the queries of the test sets,
such as G1_instruction-588: with the raw answers as `recorded_answers`, these verdicts give the pass rate of the answers
without asking a judge.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from steptool.records import Evaluation, Preference, StopReason, Verdict
from steptool.records.tables import read_records


class Status(StrEnum):
    """A judge's verdict on an answer."""

    SOLVED = "solved"
    UNSURE = "unsure"
    UNSOLVED = "unsolved"


STATUS_SCORE: Mapping[Status, float] = {Status.SOLVED: 1.0, Status.UNSURE: 0.5, Status.UNSOLVED: 0.0}
"""IsSolved by verdict."""


class Choice(StrEnum):
    """Which of two answers is better."""

    MODEL = "model"
    OTHER = "other"
    TIE = "tie"


@dataclass(frozen=True)
class JudgedRate:
    """A rate over queries that were judged several times."""

    mean: float
    """Mean over the repeats of the judgement."""
    deviation: float
    """Standard deviation over the repeats (divided by their number): how far the judge agrees with itself. It does not
    say how far another choice of queries would change the rate."""
    repeats: int
    queries: int
    missing: int
    """Missing verdicts over all repeats; the rate leaves them out."""


def find_unanswered_queries(rows: Sequence[Evaluation]) -> set[str]:
    """Queries of these evaluations whose episode ended without an answer: no Finish, or given up."""
    return {r.query_id for r in rows if r.stop_reason != StopReason.FINISHED}


def judged_pass_rate(
    verdicts: Sequence[Verdict], queries: Collection[str], unanswered: Collection[str] = ()
) -> JudgedRate | None:
    """Pass rate of one model over these queries by its verdicts; None without verdicts.

    Each repeat is a mean over queries: Solved counts 1, Unsure .5, Unsolved 0. A query of `unanswered` without a
    verdict is unsolved. Any other query without a verdict is missing. Raises ValueError for verdicts of several models.
    """
    models = sorted({v.model for v in verdicts})
    if len(models) > 1:
        raise ValueError(f"expected verdicts on one model, got {len(verdicts)} on {models}")
    status = {(v.repeat, v.query_id): v.status for v in verdicts if v.query_id in queries}
    repeats = sorted({repeat for repeat, _ in status})
    scores = [[_convert_status(status.get((r, q)), q in unanswered) for q in sorted(queries)] for r in repeats]
    present = [[s for s in row if s is not None] for row in scores]
    rates = [sum(row) / len(row) for row in present if row]
    if not rates:
        return None
    missing = sum(s is None for row in scores for s in row)
    return JudgedRate(float(np.mean(rates)), float(np.std(rates)), len(rates), len(queries), missing)


def _convert_status(status: str | None, unanswered: bool) -> float | None:
    if status is not None:
        return STATUS_SCORE[Status(status)]
    return 0.0 if unanswered else None


def decide_preferences(preferences: Iterable[Preference]) -> dict[str, Choice | None]:
    """The majority over all repeats and orders of one pair of models, by query; a tie without a majority.

    None where every judgement is missing. Raises ValueError for rows of several pairs.
    """
    ballots: dict[str, Counter[str]] = defaultdict(Counter)
    pairs = set()
    for row in preferences:
        pairs.add((row.model, row.other))
        ballots[row.query_id].update([row.preference] if row.preference else [])
    if len(pairs) > 1:
        raise ValueError(f"expected preferences between one pair of models, got {sorted(pairs)}")
    return {query: _find_majority(ballot) for query, ballot in ballots.items()}


def _find_majority(ballot: Counter[str]) -> Choice | None:
    if not ballot:
        return None
    lead = ballot[Choice.MODEL] - ballot[Choice.OTHER]
    return Choice.MODEL if lead > 0 else Choice.OTHER if lead < 0 else Choice.TIE


@dataclass(frozen=True)
class WinRate:
    """How often one model's answer was preferred to another's, over queries."""

    model: str
    other: str
    rate: float | None
    """Wins and half of the ties among the queries that were decided; None if none was."""
    wins: int
    ties: int
    losses: int
    missing: int
    """Queries without any judgement."""


def compute_win_rates(preferences: Sequence[Preference]) -> list[WinRate]:
    """The win rate of each pair of models: for each query the majority over repeats and both orders."""

    def pair(row: Preference) -> tuple[str, str]:
        return row.model, row.other

    return [_compute_win_rate(*names, list(rows)) for names, rows in groupby(sorted(preferences, key=pair), pair)]


def _compute_win_rate(model: str, other: str, rows: Sequence[Preference]) -> WinRate:
    choices = list(decide_preferences(rows).values())
    wins, ties, losses = (choices.count(p) for p in (Choice.MODEL, Choice.TIE, Choice.OTHER))
    decided_tasks = wins + ties + losses
    rate = (wins + ties / 2) / decided_tasks if decided_tasks else None
    return WinRate(model, other, rate, wins, ties, losses, choices.count(None))


def read_verdicts(paths: Iterable[str | Path]) -> list[Verdict]:
    """The verdicts of Parquet files of this contract and of files and folders as StableToolBench stores them."""
    rows: list[Verdict] = []
    for path in map(Path, paths):
        rows += read_records(path, Verdict) if path.suffix == ".parquet" else read_stabletoolbench(path)
    return rows


def read_stabletoolbench(path: str | Path) -> list[Verdict]:
    """The verdicts of a file, or of all files below a folder, in the order of model, query and repeat.

    Raises ValueError naming the file and what was expected of it.
    """
    root = Path(path)
    files = sorted(root.rglob("*.json")) if root.is_dir() else [root]
    if not files:
        raise ValueError(
            f"{path}: expected JSON files of stored verdicts (pass_rate_results of StableToolBench), found none"
        )
    rows = [row for file in files for row in _read_stored_rows(file)]
    return sorted(rows, key=lambda row: (row.model, row.query_id, row.repeat))


def _read_stored_rows(file: Path) -> Iterator[Verdict]:
    model = file.parent.name
    test_set = file.stem.removesuffix(f"_{model}")
    for number, verdict in _read_document(file).items():
        statuses = verdict.get("is_solved") if isinstance(verdict, dict) else None
        if not isinstance(statuses, dict):
            raise ValueError(f"{file}: query {number} has no object 'is_solved' of statuses by repeat")
        for repeat, status in statuses.items():
            yield Verdict(
                query_id=f"{test_set}-{number}",
                model=model,
                repeat=_read_repeat(repeat, file, number),
                status=_read_status(status, file, number),
                rationale="stored by StableToolBench",
            )


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_require_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: expected an object of verdicts by query, got {type(document).__name__}")
    return document


def _require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a query or a repeat that is given twice."""
    for key, number in Counter(key for key, _ in pairs).items():
        if number > 1:
            raise ValueError(f"'{key}' is given {number} times in one object; it has one verdict")
    return dict(pairs)


def _read_repeat(text: str, file: Path, number: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{file}: query {number}: expected the number of a repeat, got {text!r}")
    return int(text)


def _read_status(text: object, file: Path, number: str) -> str:
    name = str(text).removeprefix("AnswerStatus.").lower()
    if name not in list(Status):
        raise ValueError(f"{file}: query {number}: expected a status of {', '.join(Status)}, got {text!r}")
    return name
