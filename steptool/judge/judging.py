"""Verdicts on the episodes of an evaluation: those that were stored, and those that a judge is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from steptool.artifacts.contracts import VERDICTS, Row, read_rows
from steptool.config import JudgeConfig
from steptool.judge.outcomes import OutcomeJudge
from steptool.judge.stored_verdicts import read_stored
from steptool.records import Query, Trajectory


class Asked(NamedTuple):
    """What a judge said, and what it was asked and spent, by name."""

    verdicts: list[Row]
    preferences: list[Row]
    counts: dict[str, float]


def stored(paths: Sequence[str | Path]) -> list[Row]:
    """Rows of VERDICTS of Parquet files of this contract and of files and folders as StableToolBench stores them."""
    found = []
    for path in map(Path, paths):
        found += read_rows(path, VERDICTS) if path.suffix == ".parquet" else read_stored(path)
    return found


def asked(config: JudgeConfig, queries: Mapping[str, Query], episodes: Mapping[str, Sequence[Trajectory]]) -> Asked:
    """Rows of VERDICTS on every model's episodes and of PREFERENCES between every two models, later against earlier.

    `queries` by id, `episodes` by model, one per query.
    """
    with closing(OutcomeJudge(config)) as judge:
        verdicts = [
            row
            for model, played in episodes.items()
            for row in judge.verdicts(model, [(queries[t.query_id], t) for t in played])
        ]
        preferences = []
        for (other, theirs), (model, ours) in combinations(episodes.items(), 2):
            against = {t.query_id: t for t in theirs}
            triples = [(queries[t.query_id], t, against[t.query_id]) for t in ours]
            preferences += judge.preferences(model, other, triples)
        return Asked(verdicts, preferences, judge.counts())
