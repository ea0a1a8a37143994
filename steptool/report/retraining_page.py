"""The page of one run of retraining: who was in service, what was new, the figures of the rule, and the decision."""

from __future__ import annotations

from markupsafe import Markup

from steptool.report.assets import asset, templates
from steptool.report.charts import Interval, differences
from steptool.report.svg import signed_points
from steptool.retraining.plan import Decision, Result, RetrainingPlan, RunOutcome

PAGE = "retraining.html"
_LISTED = 100
"""Number of new files that the page lists."""
_HEADLINES = {
    Result.PROMOTED: "A better model is in service",
    Result.REFUSED: "The model in service stays",
    Result.SKIPPED: "Nothing new: nothing was trained",
}


def retraining_page(plan: RetrainingPlan, outcome: RunOutcome, training: str) -> str:
    """One HTML file that needs no network. `training`: place of the training's report; empty without one."""
    return (
        templates()
        .get_template("retraining.html.jinja")
        .render(
            plan=plan,
            outcome=outcome,
            headline=_HEADLINES[outcome.result],
            in_service=plan.champion or f"{plan.base} (no champion yet)",
            new=plan.new[:_LISTED],
            more=max(0, len(plan.new) - _LISTED),
            chart=Markup(_chart(outcome.decision)),
            training=training,
            css=asset("theme.css", "page.css"),
            script=asset("tables.js"),
        )
    )


def _chart(decision: Decision | None) -> str:
    rows = [
        Interval(c.name, "", c.mean, c.low, c.high, "c-good" if c.passed else "c-bad")
        for c in (decision.criteria if decision else ())
        if c.measured
    ]
    note = "Percentage points on the same tasks, with 95% intervals. Red: blocks the promotion."
    return differences("Challenger less champion", rows, note=note, show=signed_points) if rows else ""
