"""The results of an evaluation on a page: pass rates and differences drawn, the tables, and what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from steptool.evaluation.compare import Comparison
from steptool.evaluation.results import Results
from steptool.evaluation.tables import NOTE, text_tables
from steptool.report.charts import Interval, differences, interval_bars
from steptool.report.svg import percent, signed_points

COLOURS = ("c-steptool", "c-one", "c-warm_start", "c-two", "c-base")
"""Classes of colours that models take in turn."""


def results_section(
    results: Results, labels: Mapping[str, str] | None = None, colours: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the template `results.html.jinja` needs.

    `labels`: what a model is called in place of its name; `colours`: class of the colour of each model.
    """
    models = list(dict.fromkeys(line["model"] for line in results.lines))
    names = {model: (labels or {}).get(model, model) for model in models}
    classes = colours or {model: COLOURS[place % len(COLOURS)] for place, model in enumerate(models)}
    return {
        "charts": [Markup(chart) for chart in (*_bars(results, names, classes), _gains(results, names)) if chart],
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


def _gains(results: Results, names: Mapping[str, str]) -> str:
    """The differences drawn, where only two models are compared."""
    pairs = {(c.a, c.b) for c in results.comparisons}
    if len(pairs) != 1:
        return ""
    ((a, b),) = pairs
    rows = [
        Interval(c.group, c.decoding, c.difference.mean, c.difference.low, c.difference.high, _colour(c))
        for c in results.comparisons
    ]
    note = "Percentage points on the same tasks, with 95% intervals. Coloured where a difference is shown."
    return differences(f"{names.get(a, a)} less {names.get(b, b)}", rows, note=note, show=signed_points)


def _colour(c: Comparison) -> str:
    if not c.shown:
        return "c-base"
    return "c-steptool" if c.difference.mean > 0 else "c-bad"
