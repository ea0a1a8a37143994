"""Human labels: a form and tables of steps to fill in, and filled ones as rows of REWARDS.

    python -m steptool.report.labelling export TRAJECTORIES QUERIES FOLDER --episodes 50
    python -m steptool.report.labelling import TRAJECTORIES TARGET LABELS...

Export writes label.html, a form that works from the file without a server, and steps.csv and steps.parquet with the
same steps for other tools. Import takes the form's JSON or CSV and filled tables, of one labeller or of several.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from steptool.artifacts.errors import describe_error
from steptool.artifacts.metrics import average_known
from steptool.data.export import quote_formula, unquote_formula
from steptool.records import Query, Step, StepReward, StepStatus, ToolSchema, Trajectory
from steptool.records.columns import Row
from steptool.records.tables import iterate_records, write_records, write_text, write_whole
from steptool.report.elements import load_templates, read_asset
from steptool.report.viewer import embed
from steptool.storage.sqlite import QueryTable

ANNOTATOR, VERSION = "human", "1"
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
FORM, TABLES = "label.html", ("steps.csv", "steps.parquet")


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
                "asked": " ".join(_list_components(step, number == len(t.steps) - 1)),
                **dict.fromkeys(COMPONENTS),
                "labelled_by": "",
                "comment": "",
            }


def _list_components(step: Step, last: bool) -> Sequence[str]:
    call = () if step.status is StepStatus.FINISH else ("succ_calling", "contribution")
    return (*call, "is_solved") if last else call


def write_label_table(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write rows to fill in as CSV, or as Parquet if the name ends in .parquet; whole or not at all."""
    target = Path(path)
    if target.suffix == ".parquet":
        with write_whole(target) as partial:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=TABLE), partial)
        return target
    with (
        write_whole(target) as partial,
        partial.open("w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        writer = csv.DictWriter(file, TABLE.names)
        writer.writeheader()
        writer.writerows({name: quote_formula(cell) for name, cell in row.items()} for row in rows)
    return target


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
                rows = [{name: unquote_formula(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise LabelError(f"{source}: expected labels as CSV, Parquet or the form's JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LabelError(f"{source}: expected a list of labelled steps")
    return [_read_label(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]


def _read_label(row: Mapping[str, Any], where: str) -> Row:
    try:
        label = {"trajectory_id": str(row["trajectory_id"]), "step": int(row["step"])}
    except (KeyError, TypeError, ValueError) as error:
        raise LabelError(f"{where}: expected trajectory_id and step, got {sorted(map(str, row))}") from error
    scores = {name: _read_score(row.get(name), f"{where}: '{name}'") for name in COMPONENTS}
    labeller = str(row.get("labelled_by") or "").strip()
    if not labeller and any(score is not None for score in scores.values()):
        raise LabelError(f"{where}: has labels but no name of the labeller; fill in 'labelled_by'")
    return {**label, **scores, "labelled_by": labeller, "comment": str(row.get("comment") or ""), "where": where}


def _read_score(value: Any, where: str) -> float | None:
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
            yield from (_make_row(t.trajectory_id, number, steps.get(number, {})) for number in range(len(t.steps)))
    for steps in by_trajectory.values():
        label = next(label for labellers in steps.values() for label in labellers.values())
        raise LabelError(f"{label['where']}: '{label['trajectory_id']}' is not among the trajectories")


def _check(t: Trajectory, steps: _Labels) -> None:
    for number, labellers in steps.items():
        for label in labellers.values():
            if not 0 <= number < len(t.steps):
                last = len(t.steps) - 1
                raise LabelError(f"{label['where']}: '{t.trajectory_id}' has steps 0 to {last}, got {number}")
            expected = _list_components(t.steps[number], number == len(t.steps) - 1)
            if extra := [name for name in COMPONENTS if label[name] is not None and name not in expected]:
                components = " and ".join(expected) or "no component"
                raise LabelError(f"{label['where']}: this step takes {components}, got {extra}")


def _make_row(trajectory_id: str, number: int, labels: Mapping[str, Row]) -> StepReward:
    votes = {
        name: {labeller: row[name] for labeller, row in labels.items() if row[name] is not None} for name in COMPONENTS
    }
    means = {name: average_known(scores.values()) for name, scores in votes.items()}
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
        rationale="; ".join(
            f"{labeller}: {label['comment']}" for labeller, label in labels.items() if label["comment"]
        ),
    )


def build_labelling_form(
    rows: Sequence[Row], title: str = "Label steps", tools: Mapping[str, Sequence[ToolSchema]] | None = None
) -> str:
    """The form for a table of steps: one HTML file. The browser keeps the labels until they are downloaded.

    `tools`: those that each trajectory could call, by its id; the form shows them with the task.
    """
    by_text = {json.dumps(schemas): schemas for schemas in (tools or {}).values()}
    numbers = {text: number for number, text in enumerate(by_text)}
    data = {
        "rows": list(rows),
        "tools": list(by_text.values()),
        "tools_of": {name: numbers[json.dumps(schemas)] for name, schemas in (tools or {}).items()},
    }
    page = load_templates().get_template("label.html.jinja")
    script = read_asset("label.js")
    return page.render(title=title, css=read_asset("theme.css", "label.css"), script=script, data=Markup(embed(data)))


def export(trajectories: Path, queries: Path, folder: Path, episodes: int, seed: int = 0) -> int:
    """Write the form and the tables of some episodes, drawn at random. Returns the number of episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    table, sample = QueryTable(queries), _draw_sample(trajectories, episodes, seed)
    rows = list(label_table(table, sample))
    tools = {t.trajectory_id: table[t.query_id].tools for t in sample}
    for name in TABLES:
        write_label_table(rows, folder / name)
    write_text(folder / FORM, build_labelling_form(rows, f"Label steps of {trajectories.name}", tools))
    return len({row["trajectory_id"] for row in rows})


def _draw_sample(path: Path, size: int, seed: int) -> list[Trajectory]:
    """A random sample in one pass (Vitter's algorithm R)."""
    rng, sample = random.Random(seed), list[Trajectory]()
    for number, trajectory in enumerate(iterate_records(path, Trajectory)):
        place = number if number < size else rng.randint(0, number)
        if number < size:
            sample.append(trajectory)
        elif place < size:
            sample[place] = trajectory
    return sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m steptool.report.labelling", description="Human labels of steps")
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write a form and tables to be filled in")
    for name in ("trajectories", "queries", "folder"):
        out.add_argument(name, type=Path)
    out.add_argument("--episodes", type=int, default=50, help="episodes at most, drawn at random (50)")
    back = commands.add_parser("import", help="turn filled forms and tables into rewards")
    for name in ("trajectories", "target"):
        back.add_argument(name, type=Path)
    back.add_argument("labels", type=Path, nargs="+", help="JSON, CSV or Parquet files, one labeller or several")
    options = parser.parse_args(arguments)
    try:
        if options.command == "export":
            count = export(options.trajectories, options.queries, options.folder, options.episodes)
            print(f"{options.folder / FORM}: {count} episodes")
        else:
            labels = [label for path in options.labels for label in read_labels(path)]
            rows = label_rows(iterate_records(options.trajectories, Trajectory), labels)
            print(f"{write_records(options.target, rows, StepReward)}: labels of {len(labels)} rows")
    except (ValueError, OSError) as error:
        print(describe_error(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
