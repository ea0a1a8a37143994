"""The results of an evaluation: measures by model, group and decoding, comparisons, and what they leave out.

Tables present them: Markdown, LaTeX and pages to read, CSV and plain figures to compute with.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from steptool.data.export import quote_formula
from steptool.evaluation.compare import (
    GREEDY,
    MEASURES,
    SAMPLED,
    Comparison,
    PerQuery,
    average_by_query,
    compare,
    compute_interval,
    format_p,
    format_points,
    resample_counts,
    split_groups,
    wilson,
    write_conclusion,
)
from steptool.evaluation.measures import cost_per_solved, pass_rates_by_tries
from steptool.judge.verdicts import WinRate, compute_win_rates, find_unanswered_queries, judged_pass_rate
from steptool.records import Evaluation, Preference, Query, Verdict, VerdictSource
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


@dataclass(frozen=True)
class Results:
    """The results of any number of models on the same queries."""

    lines: Sequence[dict[str, Any]]
    """One for each group, decoding and model, in the columns of the CSV; None where a measure could not be taken."""
    comparisons: Sequence[Comparison] = ()
    wins: Sequence[WinRate] = ()
    gaps: Sequence[str] = ()
    """Sentences on what the figures leave out."""


def compute_results(
    rows: Sequence[Evaluation],
    verdicts: Sequence[Verdict] = (),
    preferences: Sequence[Preference] = (),
    queries: Iterable[Query] = (),
    *,
    draws: int = 10_000,
    seed: int = 0,
    pairs: Iterable[tuple[str, str]] | None = None,
    decodings: Sequence[str] = (GREEDY,),
) -> Results:
    """Measures of every model by group and decoding, and paired comparisons of their pass rates.

    `verdicts` and `preferences`: of a judge on the greedy episodes, if there are any.
    `queries`: those of all splits, to name the groups that were not evaluated. `pairs` and `decodings`: see `compare`.
    """
    models = list(dict.fromkeys(r.model for r in rows))
    by_model = {m: [r for r in rows if r.model == m] for m in models}
    lines = []
    for group in split_groups(rows):
        for decoding in (GREEDY, SAMPLED):
            for model in models:
                part = [r for r in split_groups(by_model[model]).get(group, ()) if r.decoding == decoding]
                judged = [v for v in verdicts if v.model == model and decoding == GREEDY]
                if part:
                    lines.append({"group": group, "model": model, "decoding": decoding, **_make_line(part, judged)})
    comparisons = compare(by_model, draws, seed, pairs, decodings)
    return Results(lines, comparisons, compute_win_rates(preferences), list(_list_gaps(rows, comparisons, queries)))


def _make_line(rows: Sequence[Evaluation], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    parts = {measure: average_by_query(rows, measure) for measure in MEASURES}
    estimates = {measure: part.estimate() for measure, part in parts.items()}
    queries = {r.query_id for r in rows}
    measured_tasks, rate = len(parts["pass_rate"].queries), estimates["pass_rate"]
    low, high = (None, None) if rate is None else wilson(rate, measured_tasks)
    judged_rate = judged_pass_rate(verdicts, queries, find_unanswered_queries(rows))
    tries = pass_rates_by_tries(rows) if rows[0].decoding == SAMPLED else {}
    if len(tries) == 1:  # pass@1 of one try is the pass rate
        tries = {}
    return {
        "tasks": len(queries),
        "measured_tasks": measured_tasks,
        "pass_rate": rate,
        "low": low,
        "high": high,
        "verdict_sources": count_sources(rows),
        "judged_pass_rate": judged_rate and judged_rate.mean,
        "judged_deviation": judged_rate and judged_rate.deviation,
        "judged_missing": judged_rate and judged_rate.missing,
        **{name: estimates[name] for name in MEASURES if name != "pass_rate"},
        **{f"{name}_per_solved": value for name, value in cost_per_solved(rows)._asdict().items()},
        **{f"pass@{k}": pass_at for k, (pass_at, _) in tries.items()},
        **{f"pass^{k}": every for k, (_, every) in tries.items()},
    }


def count_sources(rows: Iterable[Evaluation]) -> str:
    """Where the verdicts come from: one source as its name, several with the numbers of their episodes."""
    counts = Counter(row.verdict_source for row in rows)
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{source} {count}" for source, count in counts.most_common())


def _list_gaps(
    rows: Sequence[Evaluation], comparisons: Sequence[Comparison], queries: Iterable[Query]
) -> Iterator[str]:
    """What the figures leave out, in sentences."""
    unmeasured_ids = {r.query_id for r in rows if r.verdict_source == VerdictSource.NONE}
    if unmeasured_ids:
        tasks = len({r.query_id for r in rows})
        yield (
            f"{len(unmeasured_ids)} of {tasks} tasks have neither a check nor a reference answer: "
            "whether an episode solves them is not measurable, and pass rates leave them out."
        )
    failed_checks = sum(r.verdict_source == VerdictSource.FAILED for r in rows)
    if failed_checks:
        yield f"The check of the environment failed on {failed_checks} of {len(rows)} episodes, which have no verdict."
    without_recall = {r.query_id for r in rows if r.recall is None}
    if without_recall:
        yield f"{len(without_recall)} tasks name no tools of a solution: tool recall leaves them out."
    left_out = max((c.left_out for c in comparisons), default=0)
    if left_out:
        yield f"Comparisons leave out up to {left_out} tasks without a verdict on both sides."
    yield from _list_empty_groups(rows, queries)


def _list_empty_groups(rows: Sequence[Evaluation], queries: Iterable[Query]) -> Iterator[str]:
    evaluated_tiers = {r.tier for r in rows}
    splits = " and ".join(sorted({r.split for r in rows}))
    absent: dict[str, Counter[str]] = defaultdict(Counter)
    for query in queries:
        if query.tier not in evaluated_tiers:
            absent[query.tier][query.split] += 1
    for tier, counts in absent.items():
        elsewhere = ", ".join(f"{count} in {split}" for split, count in counts.items())
        yield f"No task of the group '{tier or 'no tier'}' was evaluated: the split {splits} has none ({elsewhere})."


def summarise_measures(rows: Sequence[Evaluation], draws: int = 10_000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measures of one model and decoding by group (see `split_groups`), with intervals.

    {group: {each of compare.MEASURES: value, "n": queries, "intervals": {measure: [low, high]}}}; the intervals are
    95% bootstrap intervals over queries, [None, None] for a measure that could not be taken. Raises ValueError for no
    rows and for rows of several models or decodings.
    """
    sources = sorted({(row.model, row.decoding) for row in rows})
    if len(sources) != 1:
        raise ValueError(f"expected rows of one model and one way of decoding, got {len(rows)} rows of {sources}")
    return {group: _summarise_group(part, draws, seed) for group, part in split_groups(rows).items()}


def _summarise_group(rows: Sequence[Evaluation], draws: int, seed: int) -> dict[str, Any]:
    parts = {measure: average_by_query(rows, measure) for measure in MEASURES}
    return {
        **{measure: part.estimate() for measure, part in parts.items()},
        "n": len({row.query_id for row in rows}),
        "intervals": {measure: _compute_interval(part, draws, seed) for measure, part in parts.items()},
    }


def _compute_interval(part: PerQuery, draws: int, seed: int) -> list[float | None]:
    if not part.queries:
        return [None, None]
    chunks = [part.resample(counts) for counts in resample_counts(len(part.queries), draws, seed)]
    return list(compute_interval(np.concatenate(chunks)))


def make_plain_figures(results: Results) -> dict[str, Any]:
    """All figures as plain data for JSON."""
    comparisons = [{**asdict(c), "shown": c.is_shown, "conclusion": write_conclusion(c)} for c in results.comparisons]
    wins = [asdict(w) for w in results.wins]
    lines = [dict(line) for line in results.lines]
    return {"results": lines, "comparisons": comparisons, "win_rates": wins, "left_out": list(results.gaps)}


def to_frame(results: Results) -> pd.DataFrame:
    """The lines as they are: shares from 0 to 1, seconds, tokens."""
    return pd.DataFrame(list(results.lines))


def to_csv(results: Results) -> str:
    """The lines as CSV. Names are quoted so that a spreadsheet does not take them for formulas."""
    return to_frame(results).map(quote_formula).to_csv(index=False)


def write_text_tables(results: Results, labels: Mapping[str, str] | None = None) -> list[tuple[str, pd.DataFrame]]:
    """The tables for a reader under their titles; a table without a line is left out.

    `labels`: what a model is called in place of its name.
    """
    names = labels or {}
    tables = [
        ("Results", _tabulate_measures(results, names)),
        ("Comparisons on the same tasks", _tabulate_comparisons(results, names)),
        ("Answers that the judge prefers", _tabulate_wins(results, names)),
    ]
    return [(title, table) for title, table in tables if len(table)]


def to_markdown(results: Results) -> str:
    """Tables, conclusions and what they leave out as Markdown."""
    parts = [f"**{title}**\n\n{_write_markdown(table)}" for title, table in write_text_tables(results)]
    conclusions = "\n".join(f"- {_escape(write_conclusion(c))}" for c in results.comparisons)
    gaps = "\n".join(f"- {_escape(gap)}" for gap in results.gaps)
    return "\n\n".join(part for part in (*parts, conclusions, gaps, NOTE) if part) + "\n"


def to_latex(results: Results) -> str:
    """Tables as LaTeX; they need the package booktabs."""
    tables = [t.map(_escape_latex).rename(columns=_escape_latex) for _, t in write_text_tables(results)]
    return "\n".join(t.to_latex(index=False, escape=False) for t in tables)


def _tabulate_measures(results: Results, labels: Mapping[str, str]) -> pd.DataFrame:
    """The lines as text; columns in which nothing was measured are left out."""
    tries = [c for c in to_frame(results).columns if re.match(r"pass[@^]", c)]
    table = pd.DataFrame([_write_line(line, tries, labels) for line in results.lines])
    return table.loc[:, [c for c in table.columns if (table[c] != _NONE).any()]]


def _write_line(line: Row, tries: Sequence[str], labels: Mapping[str, str]) -> dict[str, str]:
    judged_rate, deviation = _write_percent(line["judged_pass_rate"]), _write_percent(line["judged_deviation"])
    return {
        "Group": line["group"],
        "Model": labels.get(line["model"], line["model"]),
        "Decoding": line["decoding"],
        "Tasks": _write_tasks(line),
        "Pass rate": _write_pass_rate(line),
        "Verdicts by": _name_sources(line["verdict_sources"]),
        "Judged": _NONE if judged_rate == _NONE else f"{judged_rate} ± {deviation}",
        "Tool recall": _write_percent(line["recall"]),
        "Invalid calls": _write_percent(line["invalid_call_rate"]),
        "Redundant calls": _write_percent(line["redundant_call_rate"]),
        "Steps": _write_number(line["steps"], ".1f"),
        "Tokens/solved": _write_number(line["tokens_per_solved"], ",.0f"),
        "Seconds/solved": _write_number(line["seconds_per_solved"], ",.2f"),
        "Money/solved": _write_number(line["money_per_solved"], ",.4f"),
        **{name: _write_percent(line.get(name)) for name in tries},
    }


def _write_tasks(line: Row) -> str:
    measured_tasks, tasks = line["measured_tasks"], line["tasks"]
    return str(tasks) if measured_tasks in (0, tasks) else f"{measured_tasks} of {tasks}"


def _write_pass_rate(line: Row) -> str:
    if line["pass_rate"] is None:
        return NOT_MEASURABLE
    return f"{_write_percent(line['pass_rate'])} ({_write_percent(line['low'])} to {_write_percent(line['high'])})"


def _name_sources(sources: str) -> str:
    """The sources of verdicts in a reader's words, with the counts that they may have."""
    parts = [part.partition(" ") for part in sources.split(", ")]
    return ", ".join(f"{_SOURCES[name]} {count}".rstrip() for name, _, count in parts)


def _tabulate_comparisons(results: Results, labels: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Group": c.group,
            "Comparison": f"{labels.get(c.a, c.a)} − {labels.get(c.b, c.b)}",
            "Decoding": c.decoding,
            "Points": ("+" if c.difference.mean > 0 else "") + format_points(c.difference.mean),
            "95% interval": f"{format_points(c.difference.low)} to {format_points(c.difference.high)}",
            "p (Holm)": format_p(c.corrected).removeprefix("p ").removeprefix("= "),
            "Difference shown": "yes" if c.is_shown else "no",
            "Tasks": str(c.difference.n),
            "Fixed": str(c.changes.fixed),
            "Broken": str(c.changes.broken),
            "Solved by both": str(c.changes.both),
            "By neither": str(c.changes.neither),
        }
        for c in results.comparisons
    )


def _tabulate_wins(results: Results, labels: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Preferred": labels.get(w.model, w.model),
            "to": labels.get(w.other, w.other),
            "Win rate": _write_percent(w.rate),
            "Wins": str(w.wins),
            "Ties": str(w.ties),
            "Losses": str(w.losses),
            "Missing": str(w.missing),
        }
        for w in results.wins
    )


def _write_markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in row)} |" for row in rows)


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_<>|])", r"\\\1", text)


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _write_percent(share: float | None) -> str:
    return _NONE if share is None else f"{share * 100:.1f}%"


def _write_number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
