"""What a comparison of pass rates allows to say, in plain words."""

from __future__ import annotations

from steptool.evaluation.compare import Comparison
from steptool.evaluation.metrics import ALL


def conclusion(c: Comparison) -> str:
    """One sentence on a comparison of pass rates: what was seen, how sure it is, and what may be concluded."""
    d, size = c.difference, points(abs(c.difference.mean))
    where = f"{d.n} task{'' if d.n == 1 else 's'}" + ("" if c.group == ALL else f" of the group {c.group}")
    amount = f"{size} point{'' if size == '1' else 's'} {'more' if d.mean > 0 else 'fewer'} than {c.b}"
    seen = f"as many as {c.b}" if size == "0" else amount
    sure = f"95% interval {points(d.low)} to {points(d.high)}, {probability(c.corrected)}{_family(c)}"
    return f"{c.a} solves {seen} on {where} ({sure}): {_verdict(c)}."


def _verdict(c: Comparison) -> str:
    if c.shown:
        return f"{c.a} is {'better' if c.difference.mean > 0 else 'worse'} here than {c.b}"
    if c.difference.low > 0 or c.difference.high < 0:
        why = f"among {c.family} comparisons" if c.family > 1 else "in so few tasks"
        return f"no difference is shown, as one like it may come by chance {why}"
    reach = points(max(abs(c.difference.low), abs(c.difference.high)))
    return "no difference is shown" + (
        f"; one of up to {reach} points may be there all the same" if reach != "0" else ""
    )


def _family(c: Comparison) -> str:
    return f" corrected for {c.family} comparisons" if c.family > 1 else ""


def probability(p: float) -> str:
    """A p-value as p = 0.02 or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points: 0.304 as 30, 0.013 as 1.3."""
    value = difference * 100
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}".removesuffix(".0")
    return {"-0": "0"}.get(text, text).replace("-", "−")
