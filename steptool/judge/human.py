"""Labels by people: a sheet of steps to fill in, and filled sheets as rows of REWARDS."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steptool.artifacts.contracts import Row
from steptool.records import Query, Step, StepStatus, Trajectory

ANNOTATOR, VERSION = "people", "1"
COMPONENTS = ("succ_calling", "contribution", "is_solved")
LABEL = pa.schema(
    [
        pa.field("trajectory_id", pa.string()),
        pa.field("step", pa.int32()),
        pa.field("instruction", pa.string()),
        pa.field("tool", pa.string()),
        pa.field("arguments", pa.string()),
        pa.field("observation", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("asked", pa.string()),  # components to label, separated by spaces
        *(pa.field(name, pa.float32()) for name in COMPONENTS),
        pa.field("labelled_by", pa.string()),
        pa.field("comment", pa.string()),
    ]
)
"""A row of a sheet: a step and the labels that somebody gave it."""


class LabelError(ValueError):
    """Labels that cannot be taken, with the file, the row and what was expected."""


def sheet(queries: Mapping[str, Query], trajectories: Iterable[Trajectory]) -> Iterator[Row]:
    """Rows to be filled in, one for each step. No score is shown: a label is to be an opinion of its own."""
    for t in trajectories:
        for number, step in enumerate(t.steps):
            yield {
                "trajectory_id": t.trajectory_id,
                "step": number,
                "instruction": queries[t.query_id].instruction,
                "tool": step.call.name if step.call else "",
                "arguments": json.dumps(dict(step.call.arguments), ensure_ascii=False) if step.call else "",
                "observation": step.observation,
                "answer": t.final_answer or "",
                "asked": " ".join(_asked(step, number == len(t.steps) - 1)),
                **dict.fromkeys(COMPONENTS),
                "labelled_by": "",
                "comment": "",
            }


def _asked(step: Step, last: bool) -> Sequence[str]:
    call = () if step.status is StepStatus.FINISH else ("succ_calling", "contribution")
    return (*call, "is_solved") if last else call


def write_sheet(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write a sheet as CSV, or as Parquet where the name ends so."""
    target = Path(path)
    if target.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows), schema=LABEL), target)
        return target
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, LABEL.names)
        writer.writeheader()
        writer.writerows(rows)
    return target


def read_labels(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a filled sheet (CSV, Parquet), or of the JSON that the form gives. Raises LabelError for another form."""
    source = Path(path)
    try:
        if source.suffix == ".parquet":
            rows = pq.read_table(source).to_pylist()
        elif source.suffix == ".json":
            rows = json.loads(source.read_text(encoding="utf-8"))
        else:
            with source.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise LabelError(f"{source}: expected labels as CSV, Parquet or the form's JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LabelError(f"{source}: expected a list of labelled steps")
    return [_label(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]


def _label(row: Mapping[str, Any], where: str) -> Row:
    try:
        label = {"trajectory_id": str(row["trajectory_id"]), "step": int(row["step"])}
    except (KeyError, TypeError, ValueError) as error:
        raise LabelError(f"{where}: expected trajectory_id and step, got {sorted(map(str, row))}") from error
    scores = {name: _score(row.get(name), f"{where}: '{name}'") for name in COMPONENTS}
    who = str(row.get("labelled_by") or "").strip()
    if not who and any(score is not None for score in scores.values()):
        raise LabelError(f"{where}: has labels but not who gave them; fill in 'labelled_by'")
    return {**label, **scores, "labelled_by": who, "comment": str(row.get("comment") or ""), "where": where}


def _score(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise LabelError(f"{where}: expected a number from 0 to 1 or nothing, got {value!r}")
    return score


def label_rows(trajectories: Iterable[Trajectory], labels: Iterable[Row]) -> Iterator[Row]:
    """Rows of REWARDS of the trajectories that have labels. What nobody labelled is missing.

    A score is the mean over those who gave one, each counted once for a step (their last label); `votes` holds who gave
    what. Raises LabelError for a label that is about no step of the trajectories, or that its step is not asked for.
    """
    given: dict[str, dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for label in labels:
        if label["labelled_by"]:
            given[label["trajectory_id"]][label["step"]][label["labelled_by"]] = label
    for t in trajectories:
        steps = given.pop(t.trajectory_id, {})
        _check(t, steps)
        if steps:
            yield from (_row(t.trajectory_id, number, steps.get(number, {})) for number in range(len(t.steps)))
    for steps in given.values():
        raise LabelError(f"{_first(steps)['where']}: is about none of the trajectories given")


def _check(t: Trajectory, steps: Mapping[int, Mapping[str, Row]]) -> None:
    for number, by in steps.items():
        label = next(iter(by.values()))
        if not 0 <= number < len(t.steps):
            raise LabelError(f"{label['where']}: '{t.trajectory_id}' has steps 0 to {len(t.steps) - 1}, got {number}")
        asked = _asked(t.steps[number], number == len(t.steps) - 1)
        for label in by.values():
            if extra := [name for name in COMPONENTS if label[name] is not None and name not in asked]:
                raise LabelError(
                    f"{label['where']}: this step is asked {' and '.join(asked) or 'nothing'}, got {extra}"
                )


def _first(steps: Mapping[int, Mapping[str, Row]]) -> Row:
    return next(label for by in steps.values() for label in by.values())


def _row(trajectory_id: str, number: int, by: Mapping[str, Row]) -> Row:
    votes = {name: {who: label[name] for who, label in by.items() if label[name] is not None} for name in COMPONENTS}
    said = {name: given for name, given in votes.items() if given}
    return {
        "trajectory_id": trajectory_id,
        "step": number,
        "annotator": ANNOTATOR,
        "annotator_version": VERSION,
        "prompt_hash": "",
        **{name: sum(given.values()) / len(given) if given else None for name, given in votes.items()},
        "votes": json.dumps({"labelled_by": sorted(by), **said}, ensure_ascii=False) if by else "{}",
        "rationale": "; ".join(f"{who}: {label['comment']}" for who, label in by.items() if label["comment"]),
    }
