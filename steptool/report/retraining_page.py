"""The page of one run of retraining: who was in service, what was new, the figures of the rule, the decision."""

from __future__ import annotations

from markupsafe import Markup

from steptool.evaluation.words import points
from steptool.report.assets import asset, templates
from steptool.report.charts import Interval, differences
from steptool.retraining.outcome import Decision, Result, RunOutcome
from steptool.retraining.plan import RetrainingPlan

PAGE = "retraining.html"
_SHOWN = 100
"""New files that are named."""
_HEADLINES = {
    Result.PROMOTED: "A better model is in service",
    Result.REFUSED: "The model in service stays",
    Result.SKIPPED: "Nothing new: nothing was trained",
}


def retraining_page(night: RetrainingPlan, ending: RunOutcome, training: str) -> str:
    """One HTML file without a network. `training`: place of the report of the training; empty: there was none."""
    return (
        templates()
        .get_template("retraining.html.jinja")
        .render(
            night=night,
            ending=ending,
            headline=_HEADLINES[ending.result],
            in_service=night.champion or f"{night.base} (no champion yet)",
            new=night.new[:_SHOWN],
            more=max(0, len(night.new) - _SHOWN),
            chart=Markup(_chart(ending.decision)),
            training=training,
            css=asset("theme.css", "page.css"),
        )
    )


def _chart(decision: Decision | None) -> str:
    rows = [
        Interval(c.name, "", c.mean, c.low, c.high, "c-steptool" if c.passed else "c-bad")
        for c in (decision.criteria if decision else ())
        if c.measured
    ]
    note = "Percentage points on the same tasks, with 95% intervals. Red: in the way of the challenger."
    return differences("Challenger less champion", rows, note=note, show=_signed) if rows else ""


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + points(value)
