"""Human labels: a table of steps to fill in, and filled tables as rows of REWARDS."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steptool.records import Query, Step, StepReward, StepStatus, Trajectory
from steptool.records.columns import Row

ANNOTATOR, VERSION = "human", "1"
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a cell begins that a spreadsheet runs as a formula; or one that `quote_formula` has made from such a cell."""
COMPONENTS = ("succ_calling", "contribution", "is_solved")
TABLE = pa.schema(
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
"""A row of a table: a step and the labels that one person gave it."""


class LabelError(ValueError):
    """Labels that cannot be used; the message names the file, the row and what was expected."""


def label_table(queries: Mapping[str, Query], trajectories: Iterable[Trajectory]) -> Iterator[Row]:
    """Rows to fill in, one for each step. They show no score, so that a label is an independent opinion."""
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
                "asked": " ".join(_components_of(step, number == len(t.steps) - 1)),
                **dict.fromkeys(COMPONENTS),
                "labelled_by": "",
                "comment": "",
            }


def _components_of(step: Step, last: bool) -> Sequence[str]:
    call = () if step.status is StepStatus.FINISH else ("succ_calling", "contribution")
    return (*call, "is_solved") if last else call


def write_table(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write rows to fill in as CSV, or as Parquet if the name ends in .parquet."""
    target = Path(path)
    if target.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows), schema=TABLE), target)
        return target
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, TABLE.names)
        writer.writeheader()
        writer.writerows({name: quote_formula(cell) for name, cell in row.items()} for row in rows)
    return target


def quote_formula(cell: Any) -> Any:
    """A cell of a CSV file. An apostrophe goes before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _remove_quote(cell: Any) -> Any:
    """The inverse of `quote_formula`."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def read_labels(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a filled table (CSV or Parquet) or of the form's JSON. Raises LabelError for other content."""
    source = Path(path)
    try:
        if source.suffix == ".parquet":
            rows = pq.read_table(source).to_pylist()
        elif source.suffix == ".json":
            rows = json.loads(source.read_text(encoding="utf-8"))
        else:
            with source.open(encoding="utf-8-sig", newline="") as file:
                rows = [{name: _remove_quote(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
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
    labeller = str(row.get("labelled_by") or "").strip()
    if not labeller and any(score is not None for score in scores.values()):
        raise LabelError(f"{where}: has labels but no name of the labeller; fill in 'labelled_by'")
    return {**label, **scores, "labelled_by": labeller, "comment": str(row.get("comment") or ""), "where": where}


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


_Labels = Mapping[int, Mapping[str, Row]]
"""The labels of a trajectory by step and labeller."""


def label_rows(trajectories: Iterable[Trajectory], labels: Iterable[Row]) -> Iterator[StepReward]:
    """Step rewards of the trajectories that have labels. A component without a label is missing.

    A score is the mean over the labellers who gave one; a labeller's last label for a step counts. `votes` holds the
    score by labeller. Raises LabelError for a label of a step that is not in the trajectories, and for a component that
    the step does not have.
    """
    by_trajectory: dict[str, dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for label in labels:
        if label["labelled_by"]:
            by_trajectory[label["trajectory_id"]][label["step"]][label["labelled_by"]] = label
    for t in trajectories:
        steps = by_trajectory.pop(t.trajectory_id, {})
        _check(t, steps)
        if steps:
            yield from (_row(t.trajectory_id, number, steps.get(number, {})) for number in range(len(t.steps)))
    for steps in by_trajectory.values():
        label = next(label for labellers in steps.values() for label in labellers.values())
        raise LabelError(f"{label['where']}: '{label['trajectory_id']}' is not among the trajectories")


def _check(t: Trajectory, steps: _Labels) -> None:
    for number, labellers in steps.items():
        for label in labellers.values():
            if not 0 <= number < len(t.steps):
                last = len(t.steps) - 1
                raise LabelError(f"{label['where']}: '{t.trajectory_id}' has steps 0 to {last}, got {number}")
            expected = _components_of(t.steps[number], number == len(t.steps) - 1)
            if extra := [name for name in COMPONENTS if label[name] is not None and name not in expected]:
                components = " and ".join(expected) or "no component"
                raise LabelError(f"{label['where']}: this step takes {components}, got {extra}")


def _row(trajectory_id: str, number: int, labels: Mapping[str, Row]) -> StepReward:
    votes = {name: {who: row[name] for who, row in labels.items() if row[name] is not None} for name in COMPONENTS}
    means = {name: sum(scores.values()) / len(scores) if scores else None for name, scores in votes.items()}
    nonempty = {name: scores for name, scores in votes.items() if scores}
    return StepReward(
        trajectory_id=trajectory_id,
        step=number,
        annotator=ANNOTATOR,
        annotator_version=VERSION,
        succ_calling=means["succ_calling"],
        contribution=means["contribution"],
        is_solved=means["is_solved"],
        votes=json.dumps({"labelled_by": sorted(labels), **nonempty}, ensure_ascii=False) if labels else "{}",
        rationale="; ".join(f"{who}: {label['comment']}" for who, label in labels.items() if label["comment"]),
    )
