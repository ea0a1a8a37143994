"""The audit of the rewards as charts and sentences: a section of the report, and a page of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from steptool.report.elements import (
    Interval,
    Series,
    draw_differences,
    draw_interval_bars,
    draw_lines,
    format_number,
    format_percent,
    load_templates,
    read_asset,
)
from steptool.rewards.audit_figures import Agreement, Audit

NAMES = {"succ_calling": "SuccCalling", "contribution": "Contribution", "is_solved": "IsSolved"}
FIGURES = {
    "contribution": "Contribution",
    "steps": "step rewards",
    "is_solved": "IsSolved",
    "succ_calling": "SuccCalling",
    "calibrated_steps": "step rewards, calibrated",
}
_WORDS = ((0.2, "hardly at all"), (0.4, "only fairly"), (0.6, "moderately"), (0.8, "well"), (1.01, "almost always"))
"""Words for kappa, after Landis and Koch (1977)."""
_SHIFT = 0.25
"""Population stability index from which a distribution counts as shifted, by custom."""


def build_rewards_page(audit: Audit, title: str = "The rewards") -> str:
    """The audit as one HTML file that needs no network."""
    environment = load_templates(percent=format_percent, number=format_number)
    values = {"title": title, "css": read_asset("theme.css", "page.css"), "script": read_asset("tables.js")}
    return environment.get_template("rewards.html.jinja").render(values, trust=build_section({0: audit}))


def build_section(audits: Mapping[int, Audit]) -> dict[str, Any]:
    """The content of the section: the first round's audit, and charts of the figures that change with the policy."""
    first = audits[min(audits)]
    return {
        "audit": first,
        "sentences": list(write_sentences(first)),
        "charts": [Markup(chart) for chart in (*_draw_charts(first), *_draw_charts_over_rounds(audits)) if chart],
        "agreements": [a for a in first.agreements if a.steps],
        "names": NAMES,
        "tools": first.tools,
        "options": first.options,
        "disputes": first.disputes,
    }


def write_sentences(audit: Audit) -> Iterator[str]:
    """The audit in plain words."""
    worst = max(audit.missing.values(), default=0.0)
    absent = (
        "no score is missing" if worst == 0 else f"up to {format_percent(worst)} of the scores of a kind are missing"
    )
    out = f", and {format_percent(audit.left_out)} of the episodes cannot be learned from" if audit.left_out else ""
    yield f"{audit.annotator} scored {audit.steps:,} steps of {audit.episodes:,} episodes; {absent}{out}."
    for agreement in audit.agreements:
        if agreement.component == "contribution" and agreement.steps:
            yield _state_agreement(agreement)
    yield from _state_separation(audit)
    yield from _state_calibration(audit)
    yield from _state_slope(audit)
    yield from _state_redundancy(audit)
    yield from _state_drift(audit)


def _state_agreement(a: Agreement) -> str:
    opening = f"{a.one} and {a.other} agree on {format_percent(a.same)} of {a.steps:,} steps whether they contribute"
    if a.kappa is None:
        return f"{opening}; kappa is not defined, since one of them gives every step the same score."
    word = next(word for bound, word in _WORDS if a.kappa.value < bound)
    (_, count_other), (count_one, _) = a.table
    return (
        f"{opening}: beyond chance they agree {word} (kappa {format_number(round(a.kappa.value, 2))}). "
        f"{a.one} alone says yes {count_one:,} times, {a.other} alone {count_other:,} times."
    )


def _state_separation(audit: Audit) -> Iterator[str]:
    area = audit.contribution_auroc()
    whose = "the environment's verdict" if audit.judged else "the annotator's own IsSolved"
    if area is None:
        yield f"Whether a high reward goes with a solved task cannot be told: {whose} is the same for all episodes."
    else:
        yield (
            f"Of a solved and an unsolved episode (by {whose}) the solved one has the higher mean Contribution in "
            f"{format_percent(area.value)} of the pairs (AUROC, 95% interval {format_number(round(area.low, 2))} to "
            f"{format_number(round(area.high, 2))}; chance would have 50%)."
        )


def _state_calibration(audit: Audit) -> Iterator[str]:
    if audit.weights is None:
        return
    fixed_auroc, calibrated_auroc = audit.separation("steps"), audit.separation("calibrated_steps")
    effect = ""
    if fixed_auroc and calibrated_auroc:
        effect = (
            f"; the sum of an episode's step rewards then ranks a solved above an unsolved one in "
            f"{format_percent(calibrated_auroc.value)} of the pairs, in place of {format_percent(fixed_auroc.value)}"
        )
    yield f"By these episodes alone, calibrated weights are {audit.weights}{effect}."


def _state_slope(audit: Audit) -> Iterator[str]:
    steps = audit.farming[0]
    if steps.correlation and steps.slope is not None:
        yield (
            f"A further step comes with {format_number(round(steps.slope, 3))} of step reward on average (correlation "
            f"{format_number(round(steps.correlation.value, 2))}). Longer tasks need more steps, so some of that is "
            "due. A policy can farm a reward that rises steeply."
        )


def _state_redundancy(audit: Audit) -> Iterator[str]:
    repeats = audit.redundancy
    if not repeats.redundant:
        return
    share = f"{repeats.redundant:,} of {repeats.calls:,} calls repeat an earlier one and bring nothing new"
    if repeats.reward is None:
        yield f"{share}."
    elif repeats.reward < 0:
        yield f"{share}; each costs {format_number(round(-repeats.reward, 3))} on average."
    else:
        earning = f"each earns {format_number(round(repeats.reward, 3))} on average"
        yield f"{share}; {earning}. rewards.redundant_cost makes them cost something."


def _state_drift(audit: Audit) -> Iterator[str]:
    names = [NAMES[d.component] for d in audit.drifts if d.index is not None and d.index > _SHIFT]
    if names:
        yield f"Against the earlier run these have shifted: {', '.join(names)} (stability index above {_SHIFT})."
    elif audit.drifts:
        yield f"Against the earlier run nothing has shifted (stability index at most {_SHIFT})."


def _draw_charts(audit: Audit) -> Iterator[str]:
    agreements = [
        Interval(f"{a.one} and {a.other}", NAMES[a.component], a.kappa.value, a.kappa.low, a.kappa.high, "c-two")
        for a in audit.agreements
        if a.kappa
    ]
    if agreements:
        note = "Cohen's kappa, 95% interval. 0: as chance would have it, 1: always."
        yield draw_differences("Do annotators agree?", agreements, note=note, show=_format_two_decimals)
    separations = [
        Interval(s.annotator, FIGURES[s.figure], s.auroc.value, s.auroc.low, s.auroc.high, "c-one")
        for s in audit.separations
        if s.auroc
    ]
    if separations:
        note = "AUROC, 95% interval. .5: the figure does not tell, 1: it always does."
        yield draw_interval_bars("Does it tell solved episodes?", separations, note=note, show=_format_two_decimals)
    for farming in audit.farming:
        band = [(b.reward.low, b.reward.high) for b in farming.bins]
        line = Series("step reward", [(round(b.size), b.reward.value) for b in farming.bins], "c-three", band)
        title = f"Reward by number of {farming.size}"
        if len(farming.bins) > 1:
            note = "Mean of the rewards before the last step, 95% interval."
            yield draw_lines(title, [line], x_label=f"{farming.size} of the episode", floor=0, note=note)
    drifts = [
        Interval("", NAMES[d.component], d.change.value, d.change.low, d.change.high, "c-two")
        for d in audit.drifts
        if d.change
    ]
    if drifts:
        yield draw_differences(
            "Change since the earlier run", drifts, note="Means, 95% interval.", show=_format_two_decimals
        )


def _draw_charts_over_rounds(audits: Mapping[int, Audit]) -> Iterator[str]:
    if len(audits) < 2:
        return
    for title, colour, note, measure in (
        ("Agreement over rounds", "c-two", "Kappa on Contribution, 95% interval.", Audit.contribution_kappa),
        ("Separation over rounds", "c-one", "AUROC of the mean Contribution, 95% interval.", Audit.contribution_auroc),
    ):
        estimates = [(index, measure(audits[index])) for index in sorted(audits)]
        if any(estimate for _, estimate in estimates):
            points = [(float(index), e.value if e else None) for index, e in estimates]
            band = [(e.low, e.high) if e else None for _, e in estimates]
            yield draw_lines(title, [Series(title, points, colour, band)], floor=0, ceiling=1, note=note)


def _format_two_decimals(value: float) -> str:
    return format_number(round(value, 2))
