"""The parts of an SVG chart: scales, axes, number formats and the frame around it. Lengths are SVG user units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from steptool.evaluation.compare import points

WIDTH = 360
LINE_HEIGHT = 216
LEFT, RIGHT, TOP, BOTTOM = 44, 46, 12, 40
"""Margins of a chart with two axes."""
Format = Callable[[float], str]


@dataclass(frozen=True)
class Scale:
    """Linear map from [low, high] to [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Place of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def percent(value: float) -> str:
    """0.714 as 71%. A share above 0 is never shown as 0%, and a share below 1 never as 100%."""
    if 0 < value < 0.01:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{value * 100:.0f}%".replace("-", "−")


def number(value: float) -> str:
    """A number with three significant digits."""
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.1e}" if size < 0.001 else f"{value:.3g}"
    return text.replace("-", "−")


def signed_points(value: float) -> str:
    """0.05 as +5 (percentage points)."""
    return ("+" if value > 0 else "") + points(value)


def ticks(low: float, high: float, count: int = 4, smallest: float = 0.0) -> list[float]:
    """Round numbers that cover [low, high] in about `count` steps, each at least `smallest`."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = max((high - low) / count, smallest)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def figure(title: str, body: str, note: str = "", legend: Sequence[tuple[str, str]] = ()) -> str:
    """A chart under its title, with a note and a legend of (label, colour class)."""
    keys = "".join(f'<li class="{escape(colour)}">{escape(label)}</li>' for label, colour in legend)
    caption = f"<b>{escape(title)}</b>" + (f"<span>{escape(note)}</span>" if note else "")
    legend_list = f'<ul class="legend">{keys}</ul>' if keys else ""
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{legend_list}{body}</figure>'


def svg(title: str, height: float, parts: Sequence[str]) -> str:
    """An <svg> element of the common width."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def y_axis(y: Scale, marks: Sequence[float], show: Format, right: float = WIDTH - RIGHT) -> str:
    """Horizontal grid lines with their values to the left."""
    return "".join(
        f'<line class="{"base" if mark == 0 else "grid"}" x1="{LEFT}" x2="{right}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text class="tick end" x="{LEFT - 7}" y="{y(mark) + 4:g}">{escape(show(mark))}</text>'
        for mark in marks
    )


def x_axis(x: Scale, values: Sequence[float], label: str, bottom: float) -> str:
    """Values along the bottom, and the axis' label below them."""
    if len(values) > 10:
        values = [t for t in ticks(values[0], values[-1], 6, 1.0) if values[0] <= t <= values[-1]]
    labels = "".join(
        f'<text class="tick middle" x="{x(v)}" y="{bottom - BOTTOM + 17}">{escape(number(v))}</text>' for v in values
    )
    middle = (x.start + x.end) / 2
    return labels + f'<text class="axis middle" x="{middle:g}" y="{bottom - 5}">{escape(label)}</text>'


def integers(extent: tuple[float, float]) -> list[float]:
    """The whole numbers of a range."""
    return [float(v) for v in range(math.ceil(extent[0]), math.floor(extent[1]) + 1)]
