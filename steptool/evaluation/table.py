"""The results of an evaluation as tables: Markdown and LaTeX to read, CSV and plain figures to compute with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from steptool.contracts.columns import Row
from steptool.evaluation.bootstrap import MEASURES, per_query
from steptool.evaluation.compare import Comparison, compare
from steptool.evaluation.cost import cost_per_solved
from steptool.evaluation.metrics import groups, wilson
from steptool.evaluation.sampled import over_tries
from steptool.evaluation.words import conclusion, points, probability
from steptool.judge.verdicts import WinRate, judged_pass_rate, unanswered_queries, win_rates

MAIN = "greedy"
"""The way of decoding that models are compared by."""


@dataclass(frozen=True)
class Results:
    """What came out for any number of models on the same queries."""

    lines: Sequence[Row]
    """One for each group and model, in the columns of the CSV; None: not measured."""
    comparisons: Sequence[Comparison] = ()
    wins: Sequence[WinRate] = ()


def results(
    rows: Sequence[Row],
    verdicts: Sequence[Row] = (),
    preferences: Sequence[Row] = (),
    draws: int = 10_000,
    seed: int = 0,
) -> Results:
    """Measures of every model by group, and all pairwise comparisons of their pass rates.

    `rows`: of `evaluations`; the main figures are of the greedy ones, pass@k and pass^k of the sampled ones.
    `verdicts` and `preferences`: of a judge on the greedy ones, if there are any. Raises ValueError unless all models
    hold the same queries.
    """
    models = dict.fromkeys(r["model"] for r in rows)
    main = {m: [r for r in rows if r["model"] == m and r["decoding"] == MAIN] for m in models}
    lines = []
    for model, own in main.items():
        sampled = groups([r for r in rows if r["model"] == model and r["decoding"] != MAIN])
        judged = [v for v in verdicts if v["model"] == model]
        for group, part in groups(own).items():
            lines.append({"group": group, "model": model, **_line(part, judged, sampled.get(group, []))})
    order = list(dict.fromkeys(line["group"] for line in lines))
    lines.sort(key=lambda line: order.index(line["group"]))
    return Results(lines, compare(main, draws, seed), win_rates(preferences))


def _line(rows: Sequence[Row], verdicts: Sequence[Row], sampled: Sequence[Row]) -> Row:
    found = {measure: per_query(rows, measure).estimate() for measure in MEASURES}
    queries = {r["query_id"] for r in rows}
    low, high = wilson(found["pass_rate"], len(queries))
    rate = judged_pass_rate(verdicts, queries, unanswered_queries(rows))
    cost = cost_per_solved(rows)
    tries = over_tries(sampled)
    return {
        "tasks": len(queries),
        "pass_rate": found["pass_rate"],
        "low": low,
        "high": high,
        "judged_pass_rate": rate and rate.mean,
        "judged_deviation": rate and rate.deviation,
        "judged_missing": rate and rate.missing,
        **{name: found[name] for name in ("recall", "invalid_call_rate", "redundant_call_rate", "steps")},
        **{f"{name}_per_solved": value for name, value in cost._asdict().items()},
        **{f"pass@{k}": one for k, (one, _) in tries.items()},
        **{f"pass^{k}": every for k, (_, every) in tries.items()},
    }


def figures(results: Results) -> dict[str, Any]:
    """All figures as plain data for JSON."""
    told = [{**asdict(c), "shown": c.shown, "conclusion": conclusion(c)} for c in results.comparisons]
    wins = [asdict(w) for w in results.wins]
    return {"results": [dict(line) for line in results.lines], "comparisons": told, "win_rates": wins}


def frame(results: Results) -> pd.DataFrame:
    """The lines as they are, for CSV: shares from 0 to 1, seconds, tokens."""
    return pd.DataFrame(list(results.lines))


def shown(results: Results) -> pd.DataFrame:
    """The lines as text, under headings for a reader; columns in which nothing was measured are left out."""
    tries = [c for c in frame(results).columns if re.match(r"pass[@^]", c)]
    rows = [_shown(line, tries) for line in results.lines]
    table = pd.DataFrame(rows)
    return table.loc[:, [c for c in table.columns if (table[c] != _NONE).any()]]


_NONE = "–"


def _shown(line: Row, tries: Sequence[str]) -> dict[str, str]:
    judged, deviation = _percent(line["judged_pass_rate"]), _percent(line["judged_deviation"])
    return {
        "Group": line["group"],
        "Model": line["model"],
        "Tasks": str(line["tasks"]),
        "Pass rate": f"{_percent(line['pass_rate'])} ({_percent(line['low'])} to {_percent(line['high'])})",
        "Judged": _NONE if judged == _NONE else f"{judged} ± {deviation}",
        "Tool recall": _percent(line["recall"]),
        "Invalid calls": _percent(line["invalid_call_rate"]),
        "Redundant calls": _percent(line["redundant_call_rate"]),
        "Steps": _number(line["steps"], ".1f"),
        "Tokens/solved": _number(line["tokens_per_solved"], ",.0f"),
        "Seconds/solved": _number(line["seconds_per_solved"], ",.2f"),
        "Money/solved": _number(line["money_per_solved"], ",.4f"),
        **{name: _percent(line.get(name)) for name in tries},
    }


def compared(results: Results) -> pd.DataFrame:
    """The comparisons as text, under headings for a reader."""
    return pd.DataFrame(
        {
            "Group": c.group,
            "Comparison": f"{c.a} − {c.b}",
            "Points": points(c.difference.mean),
            "95% interval": f"{points(c.difference.low)} to {points(c.difference.high)}",
            "p (Holm)": probability(c.corrected).removeprefix("p ").removeprefix("= "),
            "Difference shown": "yes" if c.shown else "no",
        }
        for c in results.comparisons
    )


def won(results: Results) -> pd.DataFrame:
    """The win rates as text, under headings for a reader."""
    return pd.DataFrame(
        {
            "Preferred": w.model,
            "to": w.other,
            "Win rate": _percent(w.rate),
            "Wins": str(w.wins),
            "Ties": str(w.ties),
            "Losses": str(w.losses),
            "Missing": str(w.missing),
        }
        for w in results.wins
    )


def tables(results: Results) -> list[tuple[str, pd.DataFrame]]:
    """The tables for a reader under their titles; those without a line are left out."""
    every = [
        ("Results", shown(results)),
        ("Comparisons on the same tasks", compared(results)),
        ("Answers that the judge prefers", won(results)),
    ]
    return [(title, table) for title, table in every if len(table)]


def to_markdown(results: Results) -> str:
    """Tables and conclusions as Markdown."""
    parts = [f"**{title}**\n\n{_pipes(table)}" for title, table in tables(results)]
    told = "\n".join(f"- {_escape(conclusion(c))}" for c in results.comparisons)
    return "\n\n".join(part for part in (*parts, told, NOTE) if part) + "\n"


def to_latex(results: Results) -> str:
    """Tables as LaTeX; they need the package booktabs."""
    shown = [t.map(_latex).rename(columns=_latex) for _, t in tables(results)]
    return "\n".join(t.to_latex(index=False, escape=False) for t in shown)


NOTE = (
    "Pass rate with its 95% interval over tasks; judged: mean ± standard deviation over repeated judgements; costs for "
    "each solved task; comparisons: paired over tasks, p-values of permutation tests corrected by Holm's method."
)


def _pipes(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in row)} |" for row in rows)


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_<>|])", r"\\\1", text)


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{share * 100:.1f}%"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
