"""The charts of a training run's report, each from the rows that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steptool.evaluation.compare import wilson
from steptool.records import Metric
from steptool.report.elements import (
    Bubble,
    Format,
    Series,
    draw_bubbles,
    draw_lines,
    format_number,
    format_percent,
)
from steptool.report.run_inputs import RoundSummary, average_finite
from steptool.rewards.statistics import FarmingPoint, measure_farming

SOLVED, UNSOLVED = "c-good", "c-bad"


@dataclass(frozen=True)
class Curve:
    """How a metric is drawn."""

    title: str
    note: str
    show: Format = format_number
    floor: float | None = 0.0


CURVES: Mapping[str, Curve] = {
    "kl": Curve(
        "Distance from the warm start (KL)", "How far the policy has moved; a penalty keeps it from running off."
    ),
    "entropy": Curve("Entropy", "How undecided the policy still is; near 0 it has stopped exploring."),
    "explained_variance": Curve(
        "Value: explained variance", "1: the value head predicts the returns; 0: no better than their mean.", floor=None
    ),
    "value_loss": Curve("Value loss", "Error of the predicted returns."),
    "clip_fraction": Curve("Clipped share", "Share of the tokens whose update was held back.", format_percent),
    "mismatch_mean": Curve(
        "Engine against training: difference",
        "Mean distance of a token's log-probability from what training computes, before the first update (nats).",
    ),
    "effective_sample_share": Curve(
        "Engine against training: effective sample",
        "Share of the tokens that count once each is weighed by its importance; 1: the engine samples the policy.",
        format_percent,
    ),
    "mismatch_p99": Curve("Engine against training: 99% quantile", "Nats; one token in a hundred differs by more."),
    "mismatch_max": Curve("Engine against training: largest difference", "Nats, of one token."),
    "mismatch_k1": Curve("Engine against training: KL, k1", "Mean of log mu - log pi (nats).", floor=None),
    "mismatch_k3": Curve("Engine against training: KL, k3", "The same divergence with less variance (nats)."),
    "beyond_importance_cap": Curve(
        "Tokens beyond the importance cap", "Those that ppo.importance cuts or leaves out.", format_percent
    ),
    "policy_loss": Curve("Policy loss", "The clipped objective; its level means little.", floor=None),
    "loss": Curve("Loss", "What the optimizer minimised.", floor=None),
}
"""Metrics of training in the order of the page; the page folds all others away."""
MAIN_CURVES = (
    "kl", "entropy", "explained_variance", "value_loss", "clip_fraction", "mismatch_mean", "effective_sample_share"
)  # fmt: skip


def draw_rollout_curves(rounds: Sequence[RoundSummary]) -> list[str]:
    """Curves of the training episodes over rounds."""
    band = [None if r["pass_rate"] is None else wilson(r["pass_rate"], r["verdicts"]) for r in rounds]
    solved = Series("solved", _list_points(rounds, "pass_rate"), "c-steptool", band)
    failed = Series("failed", _list_points(rounds, "invalid_call_rate"), "c-bad")
    steps = Series("steps", _list_points(rounds, "mean_steps"), "c-one")
    return [
        draw_lines(
            "Training tasks solved", [solved], show=format_percent, floor=0, note="Sampled episodes, 95% interval."
        ),
        draw_lines("Failed calls", [failed], show=format_percent, floor=0, note="Share of all calls."),
        draw_lines("Steps per episode", [steps], floor=0, note="Calls until the answer, Finish included."),
    ]


def draw_reward_curves(rounds: Sequence[RoundSummary]) -> list[str]:
    """Reward components, the composed reward and the calls that added nothing, over rounds."""
    components = [
        Series("SuccCalling", _list_points(rounds, "succ_calling"), "c-one"),
        Series("Contribution", _list_points(rounds, "contribution"), "c-two"),
        Series("IsSolved", _list_points(rounds, "is_solved"), "c-three"),
    ]
    total = Series("reward", _list_points(rounds, "mean_reward"), "c-one")
    idle = Series("added nothing", _list_points(rounds, "idle_call_rate"), "c-one")
    return [
        draw_lines("Reward components", components, floor=0, note="Means over the scored steps."),
        draw_lines("Reward per episode", [total], floor=0, note="Sum over its steps."),
        draw_lines(
            "Calls that added nothing", [idle], show=format_percent, floor=0, note="Share with a Contribution of 0."
        ),
    ]


def _list_points(rounds: Sequence[RoundSummary], field: str) -> list[tuple[float, float | None]]:
    return [(float(r["round"]), r.get(field)) for r in rounds]  # type: ignore[misc]


def draw_training_curves(metrics: Sequence[Metric]) -> tuple[list[str], list[str]]:
    """Curves of the rounds' training metrics (means over the round's updates): the main ones, and all others."""
    rows = [r for r in metrics if r.stage != "warm_start"]
    names = dict.fromkeys([*CURVES, *sorted({r.name for r in rows})])
    curves = {n: _draw_training_curve(n, [r for r in rows if r.name == n]) for n in names}
    main = [svg for n, svg in curves.items() if svg and n in MAIN_CURVES]
    return main, [svg for n, svg in curves.items() if svg and n not in MAIN_CURVES]


def _draw_training_curve(name: str, rows: Sequence[Metric]) -> str:
    rounds = sorted({r.round for r in rows})
    if not rounds:
        return ""
    curve = CURVES.get(name, Curve(name.replace("_", " "), "", floor=None))
    data = [(float(i), average_finite(r.value for r in rows if r.round == i)) for i in rounds]
    series = [Series(curve.title, data, "c-one")]
    return draw_lines(curve.title, series, show=curve.show, floor=curve.floor, note=curve.note)


def draw_warm_start_curve(metrics: Sequence[Metric]) -> str:
    """Loss of the warm start over its updates."""
    rows = sorted((r for r in metrics if r.stage == "warm_start" and r.name == "loss"), key=lambda r: r.update)
    if not rows:
        return ""
    series = Series("loss", [(float(r.update), average_finite([r.value])) for r in rows], "c-warm_start")
    note = "Error on the recorded examples, token by token."
    return draw_lines("Warm start: loss", [series], x_label="update", floor=0, note=note)


def draw_farming_charts(farming: Mapping[int, Sequence[FarmingPoint]]) -> list[str]:
    """Step reward against number of steps, in the first and the last round, on the same axes."""
    rounds = [i for i in dict.fromkeys((min(farming), max(farming))) if farming[i]] if farming else []
    every = [p for i in rounds for p in farming[i]]
    if not every:
        return []
    low, high = min(p.reward for p in every), max(p.reward for p in every)
    width = max((high - low) / 14, 1e-9)
    bins = {i: _make_bins(farming[i], low, width) for i in rounds}
    largest = max(b.count for bubbles_of_round in bins.values() for b in bubbles_of_round)
    steps = [p.steps for p in every]
    return [
        draw_bubbles(
            f"Round {i}",
            bins[i],
            _make_mean_line(farming[i]),
            x_label="steps of the episode",
            y_label="reward before the last step",
            x_range=(min(steps), max(steps)),
            y_range=(low, high),
            largest=largest,
            legend=[("solved", SOLVED), ("not solved", UNSOLVED), ("mean", "c-line")],
            note="Larger circles: more episodes.",
        )
        for i in rounds
    ]


def draw_correlation_curve(farming: Mapping[int, Sequence[FarmingPoint]]) -> str:
    """Correlation of length and step reward over rounds; empty with less than three rounds."""
    data = [(float(i), _correlate(farming[i])) for i in sorted(farming)]
    if len(data) < 3:
        return ""
    series = Series("correlation", data, "c-one")
    note = "Length against step reward; a steep rise asks for a look."
    return draw_lines("Do longer episodes earn more?", [series], floor=0, ceiling=1, note=note)


def _make_bins(episodes: Sequence[FarmingPoint], low: float, width: float) -> list[Bubble]:
    counts: dict[tuple[int, int, bool], int] = {}
    for p in episodes:
        key = (p.steps, int((p.reward - low) / width), (p.solved or 0) > 0.5)
        counts[key] = counts.get(key, 0) + 1
    return [
        Bubble(
            steps + (-0.16 if solved else 0.16),
            low + (place + 0.5) * width,
            count,
            SOLVED if solved else UNSOLVED,
            f"{count} {'solved' if solved else 'unsolved'} episodes of {steps} steps",
        )
        for (steps, place, solved), count in counts.items()
    ]


def _make_mean_line(episodes: Sequence[FarmingPoint]) -> Series:
    lengths = sorted({p.steps for p in episodes})
    data = [(float(n), average_finite(p.reward for p in episodes if p.steps == n)) for n in lengths]
    return Series("mean reward at steps", data, "c-line")


def _correlate(episodes: Sequence[FarmingPoint]) -> float | None:
    """Correlation of steps and reward; None where it is not defined."""
    estimate = measure_farming(episodes)[0].correlation
    return estimate.value if estimate else None


def judge_farming(farming: Mapping[int, Sequence[FarmingPoint]]) -> str:
    """Whether episodes grew longer and were paid for it without solving more."""
    if len(farming) < 2 or not farming[min(farming)] or not farming[max(farming)]:
        return "Two rounds are needed to tell whether the policy learned to collect step rewards."
    first, last = farming[min(farming)], farming[max(farming)]
    (steps_0, solved_0), (steps_1, solved_1) = (
        (average_finite(p.steps for p in points) or 0.0, average_finite(p.solved for p in points) or 0.0)
        for points in (first, last)
    )
    last_correlation = _correlate(last)
    is_longer, is_paid = steps_1 > 1.1 * steps_0, last_correlation is not None and last_correlation > 0.2
    facts = (
        f"From the first to the last round the mean length went from {steps_0:.1f} to {steps_1:.1f} steps and the "
        f"share solved from {format_percent(solved_0)} to {format_percent(solved_1)}; "
        f"in the last round the correlation of length and step reward is "
        f"{'not defined' if last_correlation is None else format_number(round(last_correlation, 2))}."
    )
    if is_longer and is_paid and solved_1 <= solved_0 + 0.02:
        return (
            f"This looks like farming: episodes grew longer, longer ones earn more, no more tasks are solved. {facts}"
        )
    if is_longer and is_paid:
        return f"Worth a look: episodes grew longer and longer ones earn more, but more tasks are solved too. {facts}"
    return f"No sign of farming. {facts}"
