"""The report of a training run: one HTML file that needs no network, with charts, tables and a viewer of episodes.

The figures of a run are also the content of metrics.json, a table for the terminal, and two sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from steptool.config.training import HAVE_NO_ADVANTAGES
from steptool.evaluation.compare import ALL, GREEDY, MEASURES, SAMPLED, Comparison, Difference, format_points
from steptool.records import Cost
from steptool.records.columns import Row
from steptool.report import rewards_page, run_charts
from steptool.report.elements import format_number, format_percent, load_templates, read_asset
from steptool.report.evaluation_page import make_results_section, tabulate_judge_costs
from steptool.report.run_inputs import MODELS, ReportInputs
from steptool.report.viewer import embed, make_pair_data

CELL = (*MEASURES, "low", "high", "tasks")
"""Columns of a line of results that metrics.json keeps for each tier and model."""
_STARTS = (("warm_start", "the warm start"), ("base", "the base model"))
"""Models that the result is compared with, and what sentences call them."""


def summarise_run(inputs: ReportInputs) -> dict[str, Any]:
    """The content of metrics.json: pass rates, paired difference, tiers, costs. Only numbers, strings and None.

    pass_rate and sampled_pass_rate: {model: share}, without models that could not be measured. results: {model: greedy
    pass_rate, low, high, tasks}. difference: steptool - warm_start, greedy, paired over tasks, as {"mean", "low",
    "high", "n"} or None. base_difference: the same of steptool - base. tiers: {tier: {model: cell}} with the greedy
    figures named in CELL and the sampled pass rate. differences: the difference for each tier. comparisons: of each
    group and way of decoding, with p-values corrected over all of them. left_out: what the figures leave out. tasks:
    their number. seconds and tokens: {stage: sum, "total": sum}. peak_memory_mb: the most that a stage took.
    """
    tiers = list(dict.fromkeys(r.tier for r in inputs.evaluations))
    groups = {tier: (tier or "no tier") if len(tiers) > 1 else ALL for tier in tiers}
    return {
        "pass_rate": _select_pass_rates(inputs, GREEDY),
        "sampled_pass_rate": _select_pass_rates(inputs, SAMPLED),
        "results": {model: _select_result(line) for model in MODELS if (line := find_line(inputs, model))},
        "difference": _make_plain(find_difference(inputs)),
        "base_difference": _make_plain(find_difference(inputs, other="base")),
        "tiers": {tier: _make_cells(inputs, group) for tier, group in groups.items()},
        "comparisons": [_make_plain_comparison(c) for c in inputs.results.comparisons],
        "differences": {tier: _make_plain(find_difference(inputs, group)) for tier, group in groups.items()},
        "left_out": list(inputs.results.gaps),
        "tasks": len({r.query_id for r in inputs.evaluations}),
        "seconds": _sum_by_stage(inputs.costs, "seconds"),
        "tokens": _sum_by_stage(inputs.costs, "tokens"),
        "peak_memory_mb": max((c.peak_memory_mb for c in inputs.costs), default=0.0),
    }


def format_table(figures: Mapping[str, Any]) -> str:
    """The figures as a short aligned text for a terminal."""
    models = [m for m in MODELS if m in figures["pass_rate"]]
    head = ["pass rate, greedy", *models, "steptool - warm_start (95% interval)"]
    body = [
        [ALL, *(_format_share(figures["pass_rate"].get(m)) for m in models), _format_difference(figures["difference"])]
    ]
    for tier, cells in figures["tiers"].items():
        shares = [_format_share(cells.get(m, {}).get("pass_rate")) for m in models]
        body.append([f"  {tier or 'no tier'}", *shares, _format_difference(figures["differences"][tier])])
    if sampled := figures["sampled_pass_rate"]:
        body.append([f"{ALL}, sampled", *(_format_share(sampled.get(m)) for m in models), ""])
        for tier, cells in figures["tiers"].items():
            shares = [_format_share(cells.get(m, {}).get("sampled_pass_rate")) for m in models]
            body.append([f"  {tier or 'no tier'}, sampled", *shares, ""])
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in [head, *body]
    ]
    seconds, tokens = figures["seconds"]["total"], figures["tokens"]["total"]
    lines.append(f"{seconds:,.0f} s of work, {tokens:,} tokens, {figures['peak_memory_mb']:,.0f} MB at the peak")
    return "\n".join(lines)


def state_result(inputs: ReportInputs, name: str = "StepTool") -> list[str]:
    """The result in one or two sentences, computed from the rows. They say plainly where nothing improved.

    The first compares the result with the warm start, the second with the base model, each with its interval. Where the
    result is below its base model, that comes first.
    """
    line = find_line(inputs, "steptool")
    if line is None:
        return [f"There is no result yet: the evaluation has no greedy episodes of {name}."]
    tasks = line["tasks"]
    kind = "validation" if _get_section(inputs, "evaluation").get("split") == "validation" else "held-out"
    where = f"{tasks} {kind} task{'s' if tasks != 1 else ''}"
    pass_rate = line["pass_rate"]
    if pass_rate is None:
        return [f"Pass rates on the {where} are not measurable: the tasks have neither a check nor a reference answer."]
    if not any(_select_pass_rates(inputs, GREEDY).values()):
        return [f"No model solved any of the {where}: there is no improvement to report."]
    return _compare(inputs, f"{name} solves {format_percent(pass_rate) if pass_rate else 'none'} of {where}")


def _compare(inputs: ReportInputs, opening: str) -> list[str]:
    """The opening with the difference from the warm start or the base model, and a sentence on the other."""
    pairs = [(find_difference(inputs, other=model), label) for model, label in _STARTS]
    if pairs[1][0] is not None and pairs[1][0].mean < 0:
        pairs.reverse()
    differences = [_state_difference(difference, label) for difference, label in pairs if difference]
    if not differences:
        return [f"{opening}; there is no warm start to compare it with."]
    return [f"{opening}, {differences[0]}", *(f"That is {other}" for other in differences[1:])]


def _state_difference(d: Difference, other: str) -> str:
    interval = f"95% interval {format_points(d.low)} to {format_points(d.high)}"
    size = format_points(abs(d.mean))
    amount = f"{size} point{'' if size == '1' else 's'} {'more' if d.mean > 0 else 'fewer'} than {other}"
    if d.low > 0:
        return f"{amount} ({interval})."
    if d.high < 0:
        return f"{amount} ({interval}): training made it worse."
    if size == "0":
        return f"as many as {other} ({interval}): no improvement is shown."
    return f"{amount}, but the {interval} includes 0: no improvement is shown."


def find_difference(inputs: ReportInputs, group: str = ALL, other: str = "warm_start") -> Difference | None:
    """Greedy pass rate of the result less that of another model, over the tasks that both attempted; None without any.

    Against the warm start and on all tasks it is that of the report's first sentence: it was chosen beforehand and
    needs no correction for further comparisons.
    """
    key = (other, group, GREEDY)
    matches = (c.difference for c in inputs.results.comparisons if (c.b, c.group, c.decoding) == key)
    return next(matches, None)


def find_line(inputs: ReportInputs, model: str, group: str = ALL, decoding: str = GREEDY) -> Row | None:
    """The line of the results of a model; None where it has no episodes."""
    key = (model, group, decoding)
    lines = (r for r in inputs.results.lines if (r["model"], r["group"], r["decoding"]) == key)
    return next(lines, None)


def _select_pass_rates(inputs: ReportInputs, decoding: str, group: str = ALL) -> dict[str, float]:
    lines = {model: find_line(inputs, model, group, decoding) for model in MODELS}
    return {m: line["pass_rate"] for m, line in lines.items() if line and line["pass_rate"] is not None}


def _select_result(line: Row) -> dict[str, Any]:
    return {name: line[name] for name in ("pass_rate", "low", "high", "tasks")}


def _make_cells(inputs: ReportInputs, group: str) -> dict[str, Any]:
    sampled, cells = _select_pass_rates(inputs, SAMPLED, group), {}
    for model in MODELS:
        if line := find_line(inputs, model, group):
            cells[model] = {**{name: line[name] for name in CELL}, "sampled_pass_rate": sampled.get(model)}
    return cells


def _sum_by_stage(costs: Sequence[Cost], field: str) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for cost in costs:
        sums[cost.stage] = sums.get(cost.stage, 0) + getattr(cost, field)
    return {**sums, "total": sum(sums.values())}


def _get_section(inputs: ReportInputs, name: str) -> Mapping[str, Any]:
    section = inputs.config.get(name)
    return section if isinstance(section, Mapping) else {}


def _make_plain(d: Difference | None) -> dict[str, Any] | None:
    return None if d is None else asdict(d)


def _make_plain_comparison(c: Comparison) -> dict[str, Any]:
    figures = {"group": c.group, "decoding": c.decoding, "p": c.p, "corrected": c.corrected, "shown": c.is_shown}
    return {**figures, **asdict(c.difference)}


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}%"


def _format_difference(d: Mapping[str, Any] | None) -> str:
    if d is None:
        return "-"
    return f"{d['mean'] * 100:+.1f} points ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})"


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)


def build_report(inputs: ReportInputs) -> str:
    """The whole page. It says which parts of the inputs are empty."""
    environment = load_templates(
        percent=format_percent, number=format_number, points=format_points, decimal="{:.1f}".format
    )
    return environment.get_template("run.html.jinja").render(**_make_context(inputs))


_BASELINES = {
    "rft": (
        "RFT",
        "It kept the attempts that solved their task and learned from them as examples (rejection fine-tuning).",
    ),
    "grpo": (
        "GRPO",
        "Each attempt was compared with the other attempts at the same task; better ones became likelier.",
    ),
    "gigpo": (
        "GiGPO",
        "Attempts at the same task were compared with each other, and so were the steps taken in the same state.",
    ),
    "eto": ("ETO", "Better and worse attempts at the same task made pairs; the better ones became likelier (DPO)."),
    "archer": (
        "ArCHer",
        "A critic learned what states and calls are worth; calls worth more than their state became likelier.",
    ),
}
"""Name and sentence by algorithm."""


def describe_method(config: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the configured method, and a sentence on how it learns."""
    ppo = config.get("ppo") or {}
    if ppo.get("algorithm") in _BASELINES:
        return _BASELINES[ppo["algorithm"]]
    if ppo.get("reward") == "final":
        return "PPO", (
            "Only the outcome of an attempt was scored; what led to solved tasks was made more likely (final reward)."
        )
    return "StepTool", (
        "Every step was scored on its own: did the call work, did it help, was the task solved in the end? Steps that "
        "turned out better than expected were made more likely."
    )


def _make_context(inputs: ReportInputs) -> dict[str, Any]:
    name, explanation = describe_method(inputs.config)
    labels = {"base": "Base", "warm_start": "Warm start", "steptool": name}
    evaluated_models = {line["model"] for line in inputs.results.lines}
    models = {m: labels[m] for m in MODELS if m in evaluated_models}
    rounds = sorted(inputs.rollouts, key=lambda r: r["round"])
    main_curves, other_curves = run_charts.draw_training_curves(inputs.metrics)
    return {
        "title": inputs.title,
        "sentences": state_result(inputs, name),
        "method": name,
        "explanation": explanation,
        "notes": inputs.notes,
        "figures": summarise_run(inputs),
        "models": models,
        "results": make_results_section(inputs.results, labels),
        "rounds": rounds,
        "rollout_curves": _mark_safe(run_charts.draw_rollout_curves(rounds) if rounds else []),
        "main_curves": _mark_safe([*main_curves, run_charts.draw_warm_start_curve(inputs.metrics)]),
        "other_curves": _mark_safe(other_curves),
        "reward_curves": _mark_safe(run_charts.draw_reward_curves(rounds) if rounds else []),
        "formula": _write_formula(inputs.config),
        "farming": _mark_safe(
            [*run_charts.draw_farming_charts(inputs.farming), run_charts.draw_correlation_curve(inputs.farming)]
        ),
        "farming_verdict": run_charts.judge_farming(inputs.farming),
        "trust": rewards_page.build_section(inputs.audits) if inputs.audits else None,
        "costs": _tabulate_costs(inputs.costs),
        "judge_costs": tabulate_judge_costs(_select_judge_costs(inputs.costs)),
        "counts": list(_flatten(inputs.counts)),
        "config": json.dumps(inputs.config, indent=2, default=str, ensure_ascii=False),
        "files": inputs.files,
        "examples": len(inputs.examples),
        "data": Markup(embed(make_pair_data(inputs.examples, inputs.config))),
        "css": read_asset("theme.css", "steps.css", "page.css"),
        "script": read_asset("steps.js", "run.js", "tables.js"),
    }


def _write_formula(config: Mapping[str, Any]) -> str:
    rewards, ppo = config.get("rewards") or {}, config.get("ppo") or {}
    if not rewards or ppo.get("algorithm") in HAVE_NO_ADVANTAGES:
        return ""
    if ppo.get("reward") == "final":
        return "reward of the last step = IsSolved; of every other step = 0"
    succ = "SuccCalling − 1" if rewards.get("succ_calling") == "penalty" else "SuccCalling"
    gain = "growth of the potential" if rewards.get("contribution") == "progress" else "Contribution"
    cost = rewards.get("redundant_cost")
    gain += f" − {cost} if the call is redundant" if cost else ""
    normalisation = " / number of steps before the last" if rewards.get("normalisation") == "trajectory" else ""
    running = rewards.get("normalisation") == "running"
    scaling = "; all divided by their deviation over the rounds so far" if running else ""
    if rewards.get("weights") == "calibrated":
        scaling += "; SuccCalling and Contribution each weighted by how it went with the outcome over the last rounds"
    return (
        f"reward of a step = {rewards.get('step_weight')} × ({rewards.get('alpha')} × ({succ}) + {gain}){normalisation}"
        f"; of the last step = IsSolved{scaling}"
    )


def _tabulate_costs(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    total = sum(c.seconds for c in costs) or 1.0
    rows = []
    for stage in dict.fromkeys(c.stage for c in costs):
        stage_costs = [c for c in costs if c.stage == stage]
        seconds, tokens = sum(c.seconds for c in stage_costs), sum(c.tokens for c in stage_costs)
        rows.append(
            {
                "stage": stage,
                "runs": len(stage_costs),
                "seconds": seconds,
                "share": seconds / total,
                "tokens": tokens,
                "rate": tokens / seconds if tokens and seconds else None,
                "memory": max(c.peak_memory_mb for c in stage_costs),
            }
        )
    return rows


def _select_judge_costs(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    annotations = [c for c in costs if c.stage == "annotate"]
    return {
        "training": [c for c in annotations if c.round >= 0],
        "held-out episodes": [c for c in annotations if c.round < 0],
    }


def _flatten(counts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in counts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}: ")
        else:
            yield name, f"{value:,}" if isinstance(value, int) else value


def _mark_safe(parts: Sequence[str]) -> list[Markup]:
    return [Markup(p) for p in parts if p]
