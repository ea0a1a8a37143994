"""The figures of a run: the content of metrics.json, a table for the terminal, and a headline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steptool.contracts.columns import Row
from steptool.evaluation.bootstrap import MEASURES, per_query
from steptool.evaluation.compare import Comparison, Difference, corrected, paired_bootstrap, permutation_p
from steptool.evaluation.metrics import ALL, wilson
from steptool.evaluation.words import points
from steptool.records import Cost
from steptool.report.run_inputs import MODELS, ReportInputs
from steptool.report.svg import percent


def summary(inputs: ReportInputs) -> dict[str, Any]:
    """The content of metrics.json: pass rates, paired difference, tiers, costs. Only numbers, strings and None.

    pass_rate and sampled_pass_rate: {model: share}; difference: steptool - warm_start, greedy, paired over tasks, as
    {"mean", "low", "high", "n"} or None; tiers: {tier: {model: cell}} with the greedy cell of `cell` and the sampled
    pass rate; differences: the same as difference for each tier; comparisons: of each group and
    way of decoding, with p-values corrected over all of them; seconds and tokens: {stage: sum, "total": sum}.
    """
    rows = inputs.evaluations
    return {
        "pass_rate": _pass_rates(select(rows, decoding="greedy")),
        "sampled_pass_rate": _pass_rates(select(rows, decoding="sampled")),
        "difference": _plain(difference(inputs)),
        "tiers": {tier: _tier(select(rows, tier=tier)) for tier in tiers(rows)},
        "comparisons": [_plain_comparison(c) for c in comparisons(inputs)],
        "differences": {tier: _plain(difference(inputs, tier=tier)) for tier in tiers(rows)},
        "tasks": len({r["query_id"] for r in rows}),
        "seconds": _total(inputs.costs, "seconds"),
        "tokens": _total(inputs.costs, "tokens"),
        "peak_memory_mb": max((c.peak_memory_mb for c in inputs.costs), default=0.0),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a short aligned text for a terminal."""
    models = [m for m in MODELS if m in figures["pass_rate"]]
    head = ["pass rate, greedy", *models, "steptool - warm_start (95% interval)"]
    body = [[ALL, *(_share(figures["pass_rate"].get(m)) for m in models), _format_difference(figures["difference"])]]
    for tier, cells in figures["tiers"].items():
        shares = [_share(cells.get(m, {}).get("pass_rate")) for m in models]
        body.append([f"  {tier or 'no tier'}", *shares, _format_difference(figures["differences"][tier])])
    body.append(["all, sampled", *(_share(figures["sampled_pass_rate"].get(m)) for m in models), ""])
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in [head, *body]
    ]
    seconds, tokens = figures["seconds"]["total"], figures["tokens"]["total"]
    lines.append(f"{seconds:,.0f} s of work, {tokens:,} tokens, {figures['peak_memory_mb']:,.0f} MB at the peak")
    return "\n".join(lines)


def headline(inputs: ReportInputs, name: str = "StepTool") -> str:
    """The result in one sentence, computed from the rows. It says plainly where nothing improved."""
    greedy = select(inputs.evaluations, decoding="greedy")
    rates = _pass_rates(greedy)
    after = rates.get("steptool")
    if after is None:
        return f"There is no result yet: the evaluation has no greedy episodes of {name}."
    tasks = len({r["query_id"] for r in greedy if r["model"] == "steptool"})
    kind = "validation" if _section(inputs, "evaluation").get("split") == "validation" else "held-out"
    where = f"{tasks} {kind} task{'s' if tasks != 1 else ''}"
    if not any(rates.values()):
        return f"No model solved any of the {where}: there is no improvement to report."
    opening = f"{name} solves {percent(after) if after else 'none'} of {where}"
    compared = difference(inputs)
    return (
        f"{opening}, {_state_difference(compared)}"
        if compared
        else f"{opening}; there is no warm start to compare it with."
    )


def _state_difference(d: Difference) -> str:
    interval = f"95% interval {points(d.low)} to {points(d.high)}"
    size = points(abs(d.mean))
    amount = f"{size} point{'' if size == '1' else 's'} {'more' if d.mean > 0 else 'fewer'} than the warm start"
    if d.low > 0:
        return f"{amount} ({interval})."
    if d.high < 0:
        return f"{amount} ({interval}): training made it worse."
    if size == "0":
        return f"as many as the warm start ({interval}): no improvement is shown."
    return f"{amount}, but the {interval} includes 0: no improvement is shown."


def difference(
    inputs: ReportInputs,
    *,
    tier: str | None = None,
    decoding: str = "greedy",
    models: tuple[str, str] = ("warm_start", "steptool"),
) -> Difference | None:
    """Paired difference of pass rates, second model less first, over the tasks that both attempted; None if none."""
    sides = _common(inputs, tier, decoding, models)
    return None if sides is None else paired_bootstrap(*sides, *_draws(inputs))


def _common(
    inputs: ReportInputs, tier: str | None, decoding: str, models: tuple[str, str]
) -> tuple[list[Row], list[Row]] | None:
    """Rows of the second model and of the first over the tasks that both attempted; None if there is none."""
    rows = select(inputs.evaluations, decoding=decoding, tier=tier)
    before, after = (select(rows, model=m) for m in models)
    common = {r["query_id"] for r in before} & {r["query_id"] for r in after}
    if not common:
        return None
    first, second = ([r for r in side if r["query_id"] in common] for side in (before, after))
    return second, first


def _draws(inputs: ReportInputs) -> tuple[int, int]:
    """Resamples and seed."""
    return int(_section(inputs, "evaluation").get("bootstrap", 10_000)), int(inputs.config.get("seed", 0))


def sections_of(rows: Sequence[Row]) -> list[tuple[str, str | None]]:
    """Groups of the results as (name, tier): everything first, then each tier where there are several."""
    names = tiers(rows)
    return [(ALL, None), *((t or "no tier", t) for t in names if len(names) > 1)]


@dataclass(frozen=True)
class Compared:
    """The result against the warm start in one group, with one way of decoding."""

    decoding: str
    tier: str | None
    comparison: Comparison


def comparisons(inputs: ReportInputs) -> list[Compared]:
    """The result against the warm start by group and way of decoding; corrected as one family.

    The headline shows the first one, on all tasks, without a correction, since it was chosen beforehand.
    """
    compared = []
    for name, tier in sections_of(inputs.evaluations):
        for decoding in ("greedy", "sampled"):
            sides = _common(inputs, tier, decoding, ("warm_start", "steptool"))
            if sides is not None:
                d, p = paired_bootstrap(*sides, *_draws(inputs)), permutation_p(*sides, *_draws(inputs))
                compared.append(Compared(decoding, tier, Comparison("steptool", "warm_start", name, d, p, p)))
    values = corrected([c.comparison for c in compared])
    return [replace(c, comparison=value) for c, value in zip(compared, values, strict=True)]


def cell(rows: Sequence[Row]) -> dict[str, Any]:
    """Measures over the rows of one model and decoding (None without rows), and the number of tasks.

    low and high: Wilson's 95% interval of the pass rate over tasks (conservative where a task is a mean of repeats).
    """
    measures: dict[str, Any] = {m: per_query(rows, m).estimate() if rows else None for m in MEASURES}
    tasks = len({r["query_id"] for r in rows})
    low, high = wilson(measures["pass_rate"], tasks) if rows else (None, None)
    return {**measures, "low": low, "high": high, "tasks": tasks}


def select(
    rows: Iterable[Row], *, model: str | None = None, decoding: str | None = None, tier: str | None = None
) -> list[Row]:
    """Rows of a model, decoding or tier."""
    criteria = {k: v for k, v in (("model", model), ("decoding", decoding), ("tier", tier)) if v is not None}
    return [r for r in rows if all(r[k] == v for k, v in criteria.items())]


def tiers(rows: Iterable[Row]) -> list[str]:
    """Tiers in the order of their first row."""
    return list(dict.fromkeys(r["tier"] for r in rows))


def passed_tasks(rows: Sequence[Row]) -> dict[str, bool]:
    """Whether each task was solved, in more than half of its repeats."""
    if not rows:
        return {}
    passed = per_query(rows, "pass_rate")
    return {q: bool(share > 0.5) for q, share in zip(passed.queries, passed.top_Q, strict=True)}


def _pass_rates(rows: Sequence[Row]) -> dict[str, float]:
    rates = {m: cell(select(rows, model=m))["pass_rate"] for m in MODELS}
    return {m: rate for m, rate in rates.items() if rate is not None}


def _tier(rows: Sequence[Row]) -> dict[str, Any]:
    cells = {m: cell(select(rows, model=m, decoding="greedy")) for m in MODELS}
    sampled = _pass_rates(select(rows, decoding="sampled"))
    return {m: {**c, "sampled_pass_rate": sampled.get(m)} for m, c in cells.items() if c["tasks"] or m in sampled}


def _total(costs: Sequence[Cost], field: str) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for cost in costs:
        sums[cost.stage] = sums.get(cost.stage, 0) + getattr(cost, field)
    return {**sums, "total": sum(sums.values())}


def _section(inputs: ReportInputs, name: str) -> Mapping[str, Any]:
    section = inputs.config.get(name)
    return section if isinstance(section, Mapping) else {}


def _plain(d: Difference | None) -> dict[str, Any] | None:
    return None if d is None else {"mean": float(d.mean), "low": float(d.low), "high": float(d.high), "n": int(d.n)}


def _plain_comparison(compared: Compared) -> dict[str, Any]:
    c = compared.comparison
    plain = {"group": c.group, "decoding": compared.decoding, "p": c.p, "corrected": c.corrected, "shown": c.shown}
    return {**plain, **(_plain(c.difference) or {})}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}%"


def _format_difference(d: Mapping[str, Any] | None) -> str:
    if d is None:
        return "-"
    return f"{d['mean'] * 100:+.1f} points ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})"


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)
