"""The page of an evaluation: its conclusions and its results."""

from __future__ import annotations

from steptool.evaluation.compare import ALL, conclusion
from steptool.evaluation.results import Results
from steptool.report.assets import asset, templates
from steptool.report.judge_costs import JudgeCosts
from steptool.report.results_section import results_section
from steptool.report.viewer import LETTERS


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
            results=results_section(results),
            settings=settings,
            css=asset("theme.css", "page.css"),
        )
    )
