"""Verdicts that StableToolBench's evaluation stored, as rows of VERDICTS.

Its folder pass_rate_results holds, for each model, a folder with one JSON file per test set, <test set>_<model>.json:
for each query's number the judge's status by repeat, {"is_solved": {"0": "AnswerStatus.Solved", ...}}. The ids of the
rows are those that the data source `toolbench` gives the test sets' queries, such as G1_instruction-588: with the raw
answers as `recorded_answers`, these verdicts give the pass rate of these answers without asking anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steptool.artifacts.contracts import Row
from steptool.judge.step_judge import Status

_STATUS = "AnswerStatus."


def read_stored(path: str | Path) -> list[Row]:
    """Rows of VERDICTS of a file, or of all files below a folder, in the order of model, query and repeat.

    Raises ValueError naming the file and what was expected of it.
    """
    root = Path(path)
    files = sorted(root.rglob("*.json")) if root.is_dir() else [root]
    if not files:
        raise ValueError(f"{path}: no JSON file of stored verdicts (pass_rate_results of StableToolBench) in it")
    rows = [row for file in files for row in _rows(file)]
    return sorted(rows, key=lambda row: (row["model"], row["query_id"], row["repeat"]))


def _rows(file: Path) -> Iterator[Row]:
    model = file.parent.name
    test_set = file.stem.removesuffix(f"_{model}")
    for number, verdict in _document(file).items():
        statuses = verdict.get("is_solved") if isinstance(verdict, dict) else None
        if not isinstance(statuses, dict):
            raise ValueError(f"{file}: query {number} has no object 'is_solved' of statuses by repeat")
        for repeat, status in statuses.items():
            yield {
                "query_id": f"{test_set}-{number}",
                "model": model,
                "repeat": _repeat(repeat, file, number),
                "status": _status(status, file, number),
                "judge": "",
                "prompt_hash": "",
                "rationale": "stored by StableToolBench",
            }


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: expected an object of verdicts by query, got {type(document).__name__}")
    return document


def _repeat(text: str, file: Path, number: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{file}: query {number}: expected the number of a repeat, got {text!r}")
    return int(text)


def _status(text: object, file: Path, number: str) -> str:
    name = str(text).removeprefix(_STATUS).lower()
    if name not in list(Status):
        raise ValueError(f"{file}: query {number}: expected a status of {', '.join(Status)}, got {text!r}")
    return name
