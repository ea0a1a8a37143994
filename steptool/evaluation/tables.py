"""Results as tables: Markdown, LaTeX and pages to read, CSV and plain figures to compute with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from steptool.evaluation.compare import conclusion, points, probability
from steptool.evaluation.results import Results
from steptool.judge.human_labels import quote_formula
from steptool.records.columns import Row

NOT_MEASURABLE = "not measurable"
_NONE = "–"
_SOURCES = {
    "environment": "environment",
    "reference": "reference answer",
    "judge": "judge",
    "rule": "rule",
    "none": "nothing",
    "failed": "check failed",
}
"""Sources of verdicts as a reader sees them."""

NOTE = (
    "Pass rate with its 95% interval over tasks, and where the verdicts come from; judged: mean ± standard deviation "
    "over repeated judgements; costs for each solved task; comparisons: paired over tasks, p-values of permutation "
    "tests corrected by Holm's method. Fixed and broken: tasks that only the first or only the second model solves."
)


def plain_figures(results: Results) -> dict[str, Any]:
    """All figures as plain data for JSON."""
    comparisons = [{**asdict(c), "shown": c.is_shown, "conclusion": conclusion(c)} for c in results.comparisons]
    wins = [asdict(w) for w in results.wins]
    lines = [dict(line) for line in results.lines]
    return {"results": lines, "comparisons": comparisons, "win_rates": wins, "left_out": list(results.gaps)}


def to_frame(results: Results) -> pd.DataFrame:
    """The lines as they are: shares from 0 to 1, seconds, tokens."""
    return pd.DataFrame(list(results.lines))


def to_csv(results: Results) -> str:
    """The lines as CSV. Names are quoted so that a spreadsheet does not take them for formulas."""
    return to_frame(results).map(quote_formula).to_csv(index=False)


def text_tables(results: Results, labels: Mapping[str, str] | None = None) -> list[tuple[str, pd.DataFrame]]:
    """The tables for a reader under their titles; a table without a line is left out.

    `labels`: what a model is called in place of its name.
    """
    names = labels or {}
    tables = [
        ("Results", _measures(results, names)),
        ("Comparisons on the same tasks", _comparisons(results, names)),
        ("Answers that the judge prefers", _wins(results, names)),
    ]
    return [(title, table) for title, table in tables if len(table)]


def to_markdown(results: Results) -> str:
    """Tables, conclusions and what they leave out as Markdown."""
    parts = [f"**{title}**\n\n{_markdown_table(table)}" for title, table in text_tables(results)]
    conclusions = "\n".join(f"- {_escape(conclusion(c))}" for c in results.comparisons)
    gaps = "\n".join(f"- {_escape(gap)}" for gap in results.gaps)
    return "\n\n".join(part for part in (*parts, conclusions, gaps, NOTE) if part) + "\n"


def to_latex(results: Results) -> str:
    """Tables as LaTeX; they need the package booktabs."""
    tables = [t.map(_latex).rename(columns=_latex) for _, t in text_tables(results)]
    return "\n".join(t.to_latex(index=False, escape=False) for t in tables)


def _measures(results: Results, labels: Mapping[str, str]) -> pd.DataFrame:
    """The lines as text; columns in which nothing was measured are left out."""
    tries = [c for c in to_frame(results).columns if re.match(r"pass[@^]", c)]
    table = pd.DataFrame([_line(line, tries, labels) for line in results.lines])
    return table.loc[:, [c for c in table.columns if (table[c] != _NONE).any()]]


def _line(line: Row, tries: Sequence[str], labels: Mapping[str, str]) -> dict[str, str]:
    judged, deviation = _percent(line["judged_pass_rate"]), _percent(line["judged_deviation"])
    return {
        "Group": line["group"],
        "Model": labels.get(line["model"], line["model"]),
        "Decoding": line["decoding"],
        "Tasks": _tasks(line),
        "Pass rate": _pass_rate(line),
        "Verdicts by": _name_sources(line["verdict_sources"]),
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


def _tasks(line: Row) -> str:
    measured, tasks = line["measured_tasks"], line["tasks"]
    return str(tasks) if measured in (0, tasks) else f"{measured} of {tasks}"


def _pass_rate(line: Row) -> str:
    if line["pass_rate"] is None:
        return NOT_MEASURABLE
    return f"{_percent(line['pass_rate'])} ({_percent(line['low'])} to {_percent(line['high'])})"


def _name_sources(sources: str) -> str:
    """The sources of verdicts in a reader's words, with the counts that they may have."""
    parts = [part.partition(" ") for part in sources.split(", ")]
    return ", ".join(f"{_SOURCES[name]} {count}".rstrip() for name, _, count in parts)


def _comparisons(results: Results, labels: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Group": c.group,
            "Comparison": f"{labels.get(c.a, c.a)} − {labels.get(c.b, c.b)}",
            "Decoding": c.decoding,
            "Points": ("+" if c.difference.mean > 0 else "") + points(c.difference.mean),
            "95% interval": f"{points(c.difference.low)} to {points(c.difference.high)}",
            "p (Holm)": probability(c.corrected).removeprefix("p ").removeprefix("= "),
            "Difference shown": "yes" if c.is_shown else "no",
            "Tasks": str(c.difference.n),
            "Fixed": str(c.changes.fixed),
            "Broken": str(c.changes.broken),
            "Solved by both": str(c.changes.both),
            "By neither": str(c.changes.neither),
        }
        for c in results.comparisons
    )


def _wins(results: Results, labels: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Preferred": labels.get(w.model, w.model),
            "to": labels.get(w.other, w.other),
            "Win rate": _percent(w.rate),
            "Wins": str(w.wins),
            "Ties": str(w.ties),
            "Losses": str(w.losses),
            "Missing": str(w.missing),
        }
        for w in results.wins
    )


def _markdown_table(table: pd.DataFrame) -> str:
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
