"""The page of an evaluation: its conclusions, a chart of the pass rates, and the tables."""

from __future__ import annotations

from markupsafe import Markup

from steptool.evaluation.metrics import ALL
from steptool.evaluation.table import NOTE, Results, tables
from steptool.evaluation.words import conclusion
from steptool.report.assets import asset, templates
from steptool.report.charts import Interval, interval_bars
from steptool.report.judge_costs import JudgeCosts
from steptool.report.svg import percent
from steptool.report.viewer import LETTERS

_COLOURS = ("c-steptool", "c-one", "c-warm_start", "c-two", "c-base")


def evaluation_page(results: Results, settings: str, viewer: str = "", judge_costs: JudgeCosts | None = None) -> str:
    """One HTML file that needs no network.

    `settings` is the configuration as text, `viewer` the relative path of the viewer of the models' episodes, and
    `judge_costs` the costs of the evaluation's judge.
    """
    models = list(dict.fromkeys(line["model"] for line in results.lines))
    return (
        templates()
        .get_template("evaluation.html.jinja")
        .render(
            models=models,
            viewer=viewer,
            letters=dict(zip(models, LETTERS, strict=False)),
            judge_costs=judge_costs,
            tasks=max((line["tasks"] for line in results.lines), default=0),
            conclusions=[conclusion(c) for c in results.comparisons if c.group == ALL],
            bars=Markup(_bars(results)),
            tables=[(title, list(t.columns), t.to_numpy().tolist()) for title, t in tables(results)],
            note=NOTE,
            settings=settings,
            css=asset("theme.css", "page.css"),
        )
    )


def _bars(results: Results) -> str:
    models = list(dict.fromkeys(line["model"] for line in results.lines))
    groups = dict.fromkeys(line["group"] for line in results.lines)
    rows = [
        Interval(group, line["model"], line["pass_rate"], line["low"], line["high"], _colour(models, line["model"]))
        for group in groups
        for line in results.lines
        if line["group"] == group
    ]
    return interval_bars("Tasks solved", rows, note="Thin lines: 95% intervals.", show=percent) if rows else ""


def _colour(models: list[str], model: str) -> str:
    return _COLOURS[models.index(model) % len(_COLOURS)]
