"""The page of an evaluation, and the page of one run of retraining.

The first has the conclusions, the results drawn and as tables, and the requests to a judge with their cost. The
second says who was in service, what was new, the figures of the rule, and the decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from steptool.artifacts.metrics import total_counts
from steptool.evaluation.compare import ALL, Comparison, write_conclusion
from steptool.evaluation.results import NOTE, Results, write_text_tables
from steptool.records import Cost
from steptool.report.elements import (
    Interval,
    choose_colours,
    draw_differences,
    draw_interval_bars,
    format_percent,
    format_signed_points,
    load_templates,
    read_asset,
)
from steptool.report.viewer import LETTERS
from steptool.retraining.plan import Decision, Result, RetrainingPlan, RunOutcome

_LABELS = {
    "requests": "requests answered",
    "sent": "HTTP requests sent, further attempts included",
    "cached": "replies from the cache",
    "failed": "requests without a reply",
    "answers of no use": "replies that could not be used, asked again",
    "votes missing": "votes missing in the end",
    "prompt_tokens": "tokens read",
    "completion_tokens": "tokens written",
    "money": "money, at the configured prices",
}
"""The counts of a judge in the order of the table, with their labels."""


@dataclass(frozen=True)
class JudgeCosts:
    """Counts by part of a run, and in all."""

    parts: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    """Label, and the count of each part."""


def tabulate_judge_costs(costs: Mapping[str, Iterable[Cost]]) -> JudgeCosts | None:
    """The table of a judge by part of a run, such as training; None if no request was made.

    With several parts, "in all" is a further one.
    """
    totals = {part: counts for part, part_costs in costs.items() if (counts := total_counts(part_costs))}
    if not totals:
        return None
    if len(totals) > 1:
        names = {name for counts in totals.values() for name in counts}
        totals["in all"] = {name: sum(counts.get(name, 0) for counts in totals.values()) for name in names}
    lines = (
        (label, tuple(_format(counts.get(name, 0)) for counts in totals.values())) for name, label in _LABELS.items()
    )
    return JudgeCosts(tuple(totals), tuple(lines))


def _format(count: float) -> str:
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.4f}"


def make_results_section(results: Results, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The values of the template `results.html.jinja`. `labels` are shown in place of the names of models."""
    models = list(dict.fromkeys(line["model"] for line in results.lines))
    names = {model: (labels or {}).get(model, model) for model in models}
    classes = choose_colours(models)
    return {
        "charts": [
            Markup(chart)
            for chart in (*_draw_pass_rates(results, names, classes), *_draw_gains(results, names))
            if chart
        ],
        "tables": [(title, list(t.columns), t.to_numpy().tolist()) for title, t in write_text_tables(results, labels)],
        "swatches": {names[model]: classes[model] for model in models},
        "gaps": list(results.gaps),
        "note": NOTE,
    }


def _draw_pass_rates(results: Results, names: Mapping[str, str], classes: Mapping[str, str]) -> Iterator[str]:
    """A chart of pass rates for each way of decoding; models without a pass rate are not drawn."""
    for decoding in dict.fromkeys(line["decoding"] for line in results.lines):
        rows = [
            Interval(r["group"], names[r["model"]], r["pass_rate"], r["low"], r["high"], classes[r["model"]])
            for r in results.lines
            if r["decoding"] == decoding and r["pass_rate"] is not None
        ]
        if rows:
            yield draw_interval_bars(
                f"Tasks solved ({decoding})", rows, note="Thin lines: 95% intervals.", show=format_percent
            )


def _draw_gains(results: Results, names: Mapping[str, str]) -> Iterator[str]:
    """A chart of the differences for each pair of models, where one model is compared with up to two others."""
    pairs = list(dict.fromkeys((c.a, c.b) for c in results.comparisons))
    if len({a for a, _ in pairs}) != 1 or len(pairs) > 2:
        return
    for a, b in pairs:
        rows = [
            Interval(c.group, c.decoding, c.difference.mean, c.difference.low, c.difference.high, _choose_colour(c))
            for c in results.comparisons
            if (c.a, c.b) == (a, b)
        ]
        note = "Percentage points on the same tasks, with 95% intervals. Coloured where a difference is shown."
        yield draw_differences(f"{names.get(a, a)} less {names.get(b, b)}", rows, note=note, show=format_signed_points)


def _choose_colour(c: Comparison) -> str:
    if not c.is_shown:
        return "c-muted"
    return "c-good" if c.difference.mean > 0 else "c-bad"


def build_evaluation_page(
    results: Results, settings: str, viewer: str = "", judge_costs: JudgeCosts | None = None
) -> str:
    """One HTML file that needs no network.

    `settings` is the configuration as text, `viewer` the relative path of the viewer of the models' episodes, and
    `judge_costs` the costs of the evaluation's judge.
    """
    models = list(dict.fromkeys(line["model"] for line in results.lines))
    return (
        load_templates()
        .get_template("evaluation.html.jinja")
        .render(
            models=models,
            viewer=viewer,
            letters=dict(zip(models, LETTERS, strict=False)),
            judge_costs=judge_costs,
            tasks=max((line["tasks"] for line in results.lines), default=0),
            conclusions=[write_conclusion(c) for c in results.comparisons if c.group == ALL],
            results=make_results_section(results),
            settings=settings,
            css=read_asset("theme.css", "page.css"),
            script=read_asset("tables.js"),
        )
    )


RETRAINING_PAGE = "retraining.html"
_LISTED = 100
"""Number of new files that the page lists."""
_HEADLINES = {
    Result.PROMOTED: "A better model is in service",
    Result.REFUSED: "The model in service stays",
    Result.SKIPPED: "Nothing new: nothing was trained",
}


def build_retraining_page(plan: RetrainingPlan, outcome: RunOutcome, training: str) -> str:
    """One HTML file that needs no network. `training`: place of the training's report; empty without one."""
    return (
        load_templates()
        .get_template("retraining.html.jinja")
        .render(
            plan=plan,
            outcome=outcome,
            headline=_HEADLINES[outcome.result],
            in_service=plan.champion or f"{plan.base} (no champion yet)",
            new=plan.new[:_LISTED],
            more=max(0, len(plan.new) - _LISTED),
            chart=Markup(_draw_criteria(outcome.decision)),
            training=training,
            css=read_asset("theme.css", "page.css"),
            script=read_asset("tables.js"),
        )
    )


def _draw_criteria(decision: Decision | None) -> str:
    rows = [
        Interval(c.name, "", c.mean, c.low, c.high, "c-good" if c.passed else "c-bad")
        for c in (decision.criteria if decision else ())
        if c.measured
    ]
    note = "Percentage points on the same tasks, with 95% intervals. Red: blocks the promotion."
    return draw_differences("Challenger less champion", rows, note=note, show=format_signed_points) if rows else ""
