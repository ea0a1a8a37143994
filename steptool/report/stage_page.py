"""The page of one stage: its inputs, its outputs with charts of them, and its cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import yaml
from markupsafe import Markup
from pydantic import BaseModel

from steptool.evaluation.compare import wilson
from steptool.records import Advantage, Cost, Evaluation, Metric, StepReward, Trajectory
from steptool.records.columns import Row
from steptool.records.tables import find_record_class, iterate_records, iterate_rows, read_contract_name, read_rows
from steptool.report.elements import (
    Interval,
    Series,
    choose_colours,
    draw_figure,
    draw_interval_bars,
    draw_lines,
    load_templates,
    read_asset,
)
from steptool.report.run_charts import CURVES, draw_training_curves

_LISTED = 8
"""Number of values of a list that the page shows."""
_LEARNING = ("ppo", "rft", "eto")
"""The names under which algorithms report the metrics of the stage `ppo`."""
_ROUNDS = "rounds_together"
"""The stage that makes several rounds, each with a file of metrics."""


@dataclass(frozen=True)
class Line:
    """One input or output."""

    name: str
    summary: str
    """The value in a few words."""
    details: str = ""
    """The whole value as text, folded away on the page."""


def build_stage_page(stage: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], cost: Cost) -> str:
    """A page that needs no network. Values are plain ones, configurations, and paths of files and folders.

    `cost` holds seconds and memory of the stage. Its tokens and counts are read from the output files.
    """
    files = [(name, file) for name, value in outputs.items() for file in _list_files(value)]
    charts = [chart for name, file in files for chart in _draw_charts(file, stage, name)]
    if stage == _ROUNDS:
        charts += _draw_rounds([file for _, file in files])
    return (
        load_templates()
        .get_template("stage.html.jinja")
        .render(
            stage=stage.replace("_", " "),
            inputs=[line for name, value in inputs.items() for line in _list_lines(name, value)],
            outputs=[line for name, value in outputs.items() for line in _list_lines(name, value)],
            charts=Markup("".join(charts)),
            cost=cost,
            spent=_read_cost(stage, [file for _, file in files]),
            css=read_asset("theme.css", "page.css"),
        )
    )


def _list_lines(name: str, value: Any) -> Iterator[Line]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _list_lines(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value[:_LISTED]):
            yield from _list_lines(f"{name}[{number}]", inner)
        if len(value) > _LISTED:
            yield Line(name, f"and {len(value) - _LISTED} more")
    elif isinstance(value, BaseModel):
        yield Line(name, type(value).__name__, yaml.safe_dump(value.model_dump(mode="json"), sort_keys=False))
    else:
        yield Line(name, _describe(value) if isinstance(value, Path) else str(value))


def _describe(path: Path) -> str:
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.is_file()]
        return f"folder of {len(files)} files, {_write_size(sum(f.stat().st_size for f in files))}"
    if path.suffix == ".parquet":
        return (
            f"{read_contract_name(path)}, {pq.read_metadata(path).num_rows:,} rows, {_write_size(path.stat().st_size)}"
        )
    return f"{path.name}, {_write_size(path.stat().st_size)}"


def _write_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _list_files(value: Any) -> Iterator[Path]:
    """The Parquet files of a value."""
    if isinstance(value, Path) and value.is_dir():
        yield from sorted(value.glob("*.parquet"))
    elif isinstance(value, Path) and value.suffix == ".parquet":
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _list_files(inner)


def _read_cost(stage: str, files: Sequence[Path]) -> Cost:
    """The cost of this stage as the files record it; of several records the last."""
    records = [cost for file in files if find_record_class(file) is Cost for cost in iterate_records(file, Cost)]
    costs = [cost for cost in records if cost.stage == stage]
    return costs[-1] if costs else Cost(stage)


def _draw_charts(file: Path, stage: str, name: str) -> Iterator[str]:
    """Charts of an output file, by its contract."""
    cls = find_record_class(file)
    draw = cls and _CHARTS.get(cls)
    if draw and pq.read_metadata(file).num_rows:
        yield from draw(file, stage, name)


def _draw_trajectories(file: Path, stage: str, name: str) -> Iterator[str]:
    rows = list(iterate_rows(file, Trajectory, columns=("stop_reason", "solved")))
    ends = Counter(row["stop_reason"] for row in rows).most_common()
    bars = [_make_interval("ended", end.replace("_", " "), [1.0] * count, len(rows)) for end, count in ends]
    if verdicts := _present_values(rows, "solved"):
        bars.append(_make_interval("verdict", "solved", verdicts))
    yield draw_interval_bars(f"Episodes ({name})", bars, note="95% intervals.")


def _draw_rewards(file: Path, stage: str, name: str) -> Iterator[str]:
    scores = {"succ_calling": "succeeded", "contribution": "contributes", "is_solved": "solved"}
    rows = list(iterate_rows(file, StepReward, columns=tuple(scores)))
    bars = [
        _make_interval("", label, present)
        for score, label in scores.items()
        if (present := _present_values(rows, score))
    ]
    if bars:
        yield draw_interval_bars("Mean scores", bars, note="Over the steps that have one.")


def _draw_evaluations(file: Path, stage: str, name: str) -> Iterator[str]:
    passed: dict[tuple[str, str], list[float]] = {}
    for row in read_rows(file, Evaluation):
        if row["passed"] is not None:
            passed.setdefault((row["model"], row["decoding"]), []).append(row["passed"])
    colours = choose_colours([model for model, _ in passed])
    rows = [
        replace(_make_interval(model, decoding, values), colour=colours[model])
        for (model, decoding), values in passed.items()
    ]
    if rows:
        yield draw_interval_bars("Tasks solved", rows, note="95% intervals.")


def _draw_advantages(file: Path, stage: str, name: str) -> Iterator[str]:
    by_step: dict[int, list[Advantage]] = {}
    for advantage in iterate_records(file, Advantage):
        by_step.setdefault(advantage.step, []).append(advantage)
    lines = [
        Series(
            column, [(float(i), fmean(getattr(a, column) for a in step)) for i, step in sorted(by_step.items())], colour
        )
        for column, colour in (("reward", "c-one"), ("advantage", "c-two"))
    ]
    yield draw_lines("By step", lines, x_label="step", note="Means over the episodes.")


def _draw_metrics(file: Path, stage: str, name: str) -> Iterator[str]:
    stages = _LEARNING if stage in _LEARNING else (stage,)
    metrics = [m for m in iterate_records(file, Metric) if m.stage in stages and m.update >= 0]
    last = max((m.round for m in metrics), default=-1)
    single: list[tuple[str, str]] = []
    for metric, curve in CURVES.items():
        round_metrics = [m for m in metrics if (m.name, m.round) == (metric, last)]
        if len(round_metrics) == 1:
            single.append((curve.title, curve.show(round_metrics[0].value)))
        elif round_metrics:
            points = [(m.update + 1.0, m.value if math.isfinite(m.value) else None) for m in round_metrics]
            line = Series(metric, points, "c-one")
            yield draw_lines(curve.title, [line], x_label="update", note=curve.note, show=curve.show, floor=curve.floor)
    if single:
        yield draw_figure("Once in the round", _write_table(single))


def _draw_rounds(files: Sequence[Path]) -> list[str]:
    """Curves over the rounds of a stage, from the metrics of each."""
    metrics = [m for file in files if find_record_class(file) is Metric for m in iterate_records(file, Metric)]
    main, others = draw_training_curves(metrics)
    return [*main, *others]


def _write_table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


_CHARTS: Mapping[type, Callable[[Path, str, str], Iterator[str]]] = {
    Trajectory: _draw_trajectories,
    StepReward: _draw_rewards,
    Evaluation: _draw_evaluations,
    Advantage: _draw_advantages,
    Metric: _draw_metrics,
}
"""What draws the charts of a file, by the class of its records."""


def _present_values(rows: Sequence[Row], column: str) -> list[float]:
    return [row[column] for row in rows if row[column] is not None]


def _make_interval(group: str, label: str, values: Sequence[float], among: int = 0) -> Interval:
    """The sum of the values as a share of `among`, or of their own number where that is 0."""
    count = among or len(values)
    share = sum(values) / count
    return Interval(group, label, share, *wilson(share, count), "c-one")
