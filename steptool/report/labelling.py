"""The form in which people label steps, and the command that writes it and reads the labels.

    python -m steptool.report.labelling export TRAJECTORIES QUERIES FOLDER --episodes 50
    python -m steptool.report.labelling import TRAJECTORIES TARGET LABELS...

Export writes label.html, a form that works from the file without a server, and steps.csv and steps.parquet with the
same steps for other tools. Import takes the form's JSON or CSV and filled tables, of one labeller or of several.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from steptool.artifacts.metrics import describe_error
from steptool.judge.human_labels import LabelError, label_rows, label_table, read_labels, write_table
from steptool.records import StepReward, ToolSchema, Trajectory
from steptool.records.columns import Row
from steptool.records.tables import iterate_records, write_records
from steptool.report.elements import asset, templates
from steptool.report.viewer import embed
from steptool.storage.sqlite import QueryTable

FORM, TABLES = "label.html", ("steps.csv", "steps.parquet")


def labelling_form(
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
    page = templates().get_template("label.html.jinja")
    script = asset("label.js")
    return page.render(title=title, css=asset("theme.css", "label.css"), script=script, data=Markup(embed(data)))


def export(trajectories: Path, queries: Path, folder: Path, episodes: int, seed: int = 0) -> int:
    """Write the form and the tables of some episodes, drawn at random. Returns the number of episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    table, sample = QueryTable(queries), _draw_sample(trajectories, episodes, seed)
    rows = list(label_table(table, sample))
    tools = {t.trajectory_id: table[t.query_id].tools for t in sample}
    for name in TABLES:
        write_table(rows, folder / name)
    (folder / FORM).write_text(labelling_form(rows, f"Label steps of {trajectories.name}", tools), encoding="utf-8")
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
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m steptool.report.labelling", description="Steps labelled by people")
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
    except (LabelError, ValueError, OSError) as error:
        print(describe_error(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
