"""The results of an evaluation on a page: pass rates and differences drawn, the tables, and what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from steptool.evaluation.compare import Comparison
from steptool.evaluation.results import Results
from steptool.evaluation.tables import NOTE, text_tables
from steptool.report.charts import Interval, differences, interval_bars
from steptool.report.colours import model_colours
from steptool.report.svg import percent, signed_points


def results_section(results: Results, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The values of the template `results.html.jinja`. `labels` are shown in place of the names of models."""
    models = list(dict.fromkeys(line["model"] for line in results.lines))
    names = {model: (labels or {}).get(model, model) for model in models}
    classes = model_colours(models)
    return {
        "charts": [Markup(chart) for chart in (*_bars(results, names, classes), *_gains(results, names)) if chart],
        "tables": [(title, list(t.columns), t.to_numpy().tolist()) for title, t in text_tables(results, labels)],
        "swatches": {names[model]: classes[model] for model in models},
        "gaps": list(results.gaps),
        "note": NOTE,
    }


def _bars(results: Results, names: Mapping[str, str], classes: Mapping[str, str]) -> Iterator[str]:
    """A chart of pass rates for each way of decoding; models without a pass rate are not drawn."""
    for decoding in dict.fromkeys(line["decoding"] for line in results.lines):
        rows = [
            Interval(r["group"], names[r["model"]], r["pass_rate"], r["low"], r["high"], classes[r["model"]])
            for r in results.lines
            if r["decoding"] == decoding and r["pass_rate"] is not None
        ]
        if rows:
            yield interval_bars(f"Tasks solved ({decoding})", rows, note="Thin lines: 95% intervals.", show=percent)


def _gains(results: Results, names: Mapping[str, str]) -> Iterator[str]:
    """A chart of the differences for each pair of models, where one model is compared with up to two others."""
    pairs = list(dict.fromkeys((c.a, c.b) for c in results.comparisons))
    if len({a for a, _ in pairs}) != 1 or len(pairs) > 2:
        return
    for a, b in pairs:
        rows = [
            Interval(c.group, c.decoding, c.difference.mean, c.difference.low, c.difference.high, _colour(c))
            for c in results.comparisons
            if (c.a, c.b) == (a, b)
        ]
        note = "Percentage points on the same tasks, with 95% intervals. Coloured where a difference is shown."
        yield differences(f"{names.get(a, a)} less {names.get(b, b)}", rows, note=note, show=signed_points)


def _colour(c: Comparison) -> str:
    if not c.shown:
        return "c-base"
    return "c-steptool" if c.difference.mean > 0 else "c-bad"
