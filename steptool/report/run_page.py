"""The report of a training run as one HTML file that needs no network: charts, tables and a viewer of episodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from steptool.config.training import HAVE_NO_ADVANTAGES
from steptool.evaluation.compare import points
from steptool.records import Cost
from steptool.report import rewards_page, run_charts
from steptool.report.assets import asset, templates
from steptool.report.episode_data import embed, pair_data
from steptool.report.evaluation_page import results_section, tabulate_judge_costs
from steptool.report.run_inputs import MODELS, ReportInputs
from steptool.report.summary import state_result, summary
from steptool.report.svg import number, percent


def build_report(inputs: ReportInputs) -> str:
    """The whole page. It says which parts of the inputs are empty."""
    environment = templates(percent=percent, number=number, points=points, decimal="{:.1f}".format)
    return environment.get_template("run.html.jinja").render(**_context(inputs))


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
        "turned out better than expected were made more likely, worse ones less."
    )


def _context(inputs: ReportInputs) -> dict[str, Any]:
    name, explanation = describe_method(inputs.config)
    labels = {"base": "Base", "warm_start": "Warm start", "steptool": name}
    evaluated = {line["model"] for line in inputs.results.lines}
    models = {m: labels[m] for m in MODELS if m in evaluated}
    rounds = sorted(inputs.rollouts, key=lambda r: r["round"])
    main, others = run_charts.training_curves(inputs.metrics)
    return {
        "title": inputs.title,
        "sentences": state_result(inputs, name),
        "method": name,
        "explanation": explanation,
        "notes": inputs.notes,
        "figures": summary(inputs),
        "models": models,
        "results": results_section(inputs.results, labels),
        "rounds": rounds,
        "rollout_curves": _markups(run_charts.rollout_curves(rounds) if rounds else []),
        "main_curves": _markups([*main, run_charts.warm_start_curve(inputs.metrics)]),
        "other_curves": _markups(others),
        "reward_curves": _markups(run_charts.reward_curves(rounds) if rounds else []),
        "formula": _formula(inputs.config),
        "farming": _markups([*run_charts.farming_charts(inputs.farming), run_charts.correlation_curve(inputs.farming)]),
        "farming_verdict": run_charts.farming_verdict(inputs.farming),
        "trust": rewards_page.section(inputs.audits) if inputs.audits else None,
        "costs": _costs(inputs.costs),
        "judge_costs": tabulate_judge_costs(_costs_of_judge(inputs.costs)),
        "counts": list(_flatten(inputs.counts)),
        "config": json.dumps(inputs.config, indent=2, default=str, ensure_ascii=False),
        "files": inputs.files,
        "examples": len(inputs.examples),
        "data": Markup(embed(pair_data(inputs.examples, inputs.config))),
        "css": asset("theme.css", "steps.css", "page.css"),
        "script": asset("steps.js", "run.js", "tables.js"),
    }


def _formula(config: Mapping[str, Any]) -> str:
    rewards, ppo = config.get("rewards") or {}, config.get("ppo") or {}
    if not rewards or ppo.get("algorithm") in HAVE_NO_ADVANTAGES:
        return ""
    if ppo.get("reward") == "final":
        return "reward of the last step = IsSolved; of every other step = 0"
    succ = "SuccCalling − 1" if rewards.get("succ_calling") == "penalty" else "SuccCalling"
    gain = "growth of the potential" if rewards.get("contribution") == "progress" else "Contribution"
    cost = rewards.get("redundant_cost")
    gain += f" − {cost} if the call is redundant" if cost else ""
    divided = " / number of steps before the last" if rewards.get("normalisation") == "trajectory" else ""
    running = rewards.get("normalisation") == "running"
    scaled = "; all divided by their deviation over the rounds so far" if running else ""
    if rewards.get("weights") == "calibrated":
        scaled += "; SuccCalling and Contribution each weighted by how it went with the outcome over the last rounds"
    return (
        f"reward of a step = {rewards.get('step_weight')} × ({rewards.get('alpha')} × ({succ}) + {gain}){divided}"
        f"; of the last step = IsSolved{scaled}"
    )


def _costs(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    total = sum(c.seconds for c in costs) or 1.0
    rows = []
    for stage in dict.fromkeys(c.stage for c in costs):
        own = [c for c in costs if c.stage == stage]
        seconds, tokens = sum(c.seconds for c in own), sum(c.tokens for c in own)
        rows.append(
            {
                "stage": stage,
                "runs": len(own),
                "seconds": seconds,
                "share": seconds / total,
                "tokens": tokens,
                "rate": tokens / seconds if tokens and seconds else None,
                "memory": max(c.peak_memory_mb for c in own),
            }
        )
    return rows


def _costs_of_judge(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
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


def _markups(parts: Sequence[str]) -> list[Markup]:
    return [Markup(p) for p in parts if p]
