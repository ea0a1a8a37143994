"""What pages are made of: templates, styles, one colour for one model, and small SVG charts that need no library.

Each chart is a <figure>, made of scales, axes, number formats and a frame. Lengths are SVG user units. Colours are CSS
classes (see page.css), so that a chart follows the page's light or dark scheme.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steptool.evaluation.compare import format_points

DASH = "–"
"""Stands for a value that is missing."""
WIDTH = 360
LINE_HEIGHT = 216
LEFT, RIGHT, TOP, BOTTOM = 44, 46, 12, 40
"""Margins of a chart with two axes."""
Format = Callable[[float], str]


def load_templates(**formats: Callable[[Any], str]) -> Environment:
    """Templates that escape every value and refuse a name without a value.

    Each of the `formats` becomes a filter of its name, which writes a dash for None.
    """
    environment = Environment(
        loader=PackageLoader("steptool", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: _allow_missing(form) for name, form in formats.items()}
    return environment


def read_asset(*names: str) -> Markup:
    """The text of these styles or scripts, one after the other."""
    folder = files("steptool.report") / "static"
    return Markup("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))


def _allow_missing(form: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: DASH if value is None else form(value)


KNOWN = {"base": "c-base", "warm_start": "c-warm_start", "steptool": "c-steptool", "champion": "c-one"}
"""Classes of the models that the workflows themselves name."""
FURTHER = ("c-two", "c-three", "c-four", "c-five", "c-six")
"""Classes of all other models, and after these the known ones that a page does not need."""


def choose_colours(models: Sequence[str]) -> dict[str, str]:
    """The CSS class of each model. The name decides; of two names with the same class the later gets a free one."""
    colours: dict[str, str] = {model: KNOWN[model] for model in models if model in KNOWN}
    for model in sorted({*models} - KNOWN.keys()):
        first = hashlib.sha256(model.encode()).digest()[0]
        order = [*(FURTHER[(first + step) % len(FURTHER)] for step in range(len(FURTHER))), *KNOWN.values()]
        colours[model] = next((colour for colour in order if colour not in colours.values()), order[0])
    return {model: colours[model] for model in dict.fromkeys(models)}


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


def format_percent(value: float) -> str:
    """0.714 as 71%. A share above 0 is never shown as 0%, and a share below 1 never as 100%."""
    if 0 < value < 0.01:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{value * 100:.0f}%".replace("-", "−")


def format_number(value: float) -> str:
    """A number with three significant digits."""
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.1e}" if size < 0.001 else f"{value:.3g}"
    return text.replace("-", "−")


def format_signed_points(value: float) -> str:
    """0.05 as +5 (percentage points)."""
    return ("+" if value > 0 else "") + format_points(value)


def choose_ticks(low: float, high: float, count: int = 4, smallest: float = 0.0) -> list[float]:
    """Round numbers that cover [low, high] in about `count` steps, each at least `smallest`."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = max((high - low) / count, smallest)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def draw_figure(title: str, body: str, note: str = "", legend: Sequence[tuple[str, str]] = ()) -> str:
    """A chart under its title, with a note and a legend of (label, colour class)."""
    keys = "".join(f'<li class="{escape(colour)}">{escape(label)}</li>' for label, colour in legend)
    caption = f"<b>{escape(title)}</b>" + (f"<span>{escape(note)}</span>" if note else "")
    legend_list = f'<ul class="legend">{keys}</ul>' if keys else ""
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{legend_list}{body}</figure>'


def draw_svg(title: str, height: float, parts: Sequence[str]) -> str:
    """An <svg> element of the common width."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def draw_y_axis(y: Scale, marks: Sequence[float], show: Format, right: float = WIDTH - RIGHT) -> str:
    """Horizontal grid lines with their values to the left."""
    return "".join(
        f'<line class="{"base" if mark == 0 else "grid"}" x1="{LEFT}" x2="{right}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text class="tick end" x="{LEFT - 7}" y="{y(mark) + 4:g}">{escape(show(mark))}</text>'
        for mark in marks
    )


def draw_x_axis(x: Scale, values: Sequence[float], label: str, bottom: float) -> str:
    """Values along the bottom, and the axis' label below them."""
    if len(values) > 10:
        values = [t for t in choose_ticks(values[0], values[-1], 6, 1.0) if values[0] <= t <= values[-1]]
    labels = "".join(
        f'<text class="tick middle" x="{x(v)}" y="{bottom - BOTTOM + 17}">{escape(format_number(v))}</text>'
        for v in values
    )
    middle = (x.start + x.end) / 2
    return labels + f'<text class="axis middle" x="{middle:g}" y="{bottom - 5}">{escape(label)}</text>'


def list_integers(extent: tuple[float, float]) -> list[float]:
    """The whole numbers of a range."""
    return [float(v) for v in range(math.ceil(extent[0]), math.floor(extent[1]) + 1)]


_NAMES, _MAX_NAME, _VALUES = 84, 22, 46
"""Chart of rows: room left of it for short names, characters of a name that it shows, and room right for the values."""
_LETTER = 7.4
"""Room for a character of a name."""
_ROW = 22


@dataclass(frozen=True)
class Series:
    """A line: points (x, y), broken where y is None; an optional interval (low, high) for each point."""

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    """CSS class of the colour."""
    band: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Interval:
    """A value with its interval, in a group of rows."""

    group: str
    label: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Bubble:
    """A number of things at one place."""

    x: float
    y: float
    count: int
    colour: str
    label: str


def draw_lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "round",
    note: str = "",
    show: Format = format_number,
    floor: float | None = None,
    ceiling: float | None = None,
) -> str:
    """Lines over a common x axis. The y axis covers the data, and `floor` and `ceiling` where given."""
    lines = [s for s in series if any(y is not None for _, y in s.points)]
    if not lines:
        return draw_figure(title, '<p class="empty">Nothing was recorded.</p>', note)
    xs = [x for s in lines for x, _ in s.points]
    marks = choose_ticks(*_find_extent(lines, floor, ceiling))
    x = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y = Scale(marks[0], marks[-1], LINE_HEIGHT - BOTTOM, TOP)
    parts = [draw_y_axis(y, marks, show), draw_x_axis(x, sorted(set(xs)), x_label, LINE_HEIGHT)]
    parts += [_draw_band(s, x, y) for s in lines] + [_draw_line(s, x, y, show) for s in lines]
    parts.append(_draw_end_labels(lines, x, y, show))
    legend = [(s.label, s.colour) for s in lines] if len(lines) > 1 else []
    return draw_figure(title, draw_svg(title, LINE_HEIGHT, parts), note, legend)


def draw_interval_bars(title: str, rows: Sequence[Interval], *, note: str = "", show: Format = format_percent) -> str:
    """Horizontal bars from 0 to 1 with error intervals, one block of rows for each group."""
    x = Scale(0, 1, _find_start(rows), WIDTH - _VALUES)
    body, height = _draw_rows(rows, x, [0, 0.25, 0.5, 0.75, 1], show, _draw_bar)
    return draw_figure(title, draw_svg(title, height, body), note)


def draw_differences(title: str, rows: Sequence[Interval], *, note: str = "", show: Format = format_percent) -> str:
    """Points with intervals around a line at zero, one block of rows for each group."""
    marks = choose_ticks(min([0.0, *(r.low for r in rows)]), max([0.05, *(r.high for r in rows)]))
    x = Scale(marks[0], marks[-1], _find_start(rows), WIDTH - _VALUES)
    body, height = _draw_rows(rows, x, marks, show, _draw_whisker)
    body.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="{height - 26}"/>')
    return draw_figure(title, draw_svg(title, height, body), note)


def draw_bubbles(
    title: str,
    points: Sequence[Bubble],
    line: Series,
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    largest: int,
    note: str = "",
    legend: Sequence[tuple[str, str]] = (),
) -> str:
    """Circles whose area is the count (`largest` fills the biggest one), and a line through them."""
    marks = choose_ticks(*y_range)
    height = LINE_HEIGHT + 30
    x = Scale(x_range[0] - 0.6, x_range[1] + 0.6, LEFT, WIDTH - 12)
    y = Scale(marks[0], marks[-1], height - BOTTOM, TOP + 12)
    parts = [
        draw_y_axis(y, marks, format_number, WIDTH - 12),
        f'<text class="axis" x="4" y="14">{escape(y_label)}</text>',
    ]
    parts.append(draw_x_axis(x, list_integers(x_range), x_label, height))
    for p in sorted(points, key=lambda p: -p.count):
        radius = round(1.5 + 11 * math.sqrt(p.count / max(largest, 1)), 2)
        parts.append(
            f'<circle class="bubble {p.colour}" cx="{x(p.x)}" cy="{y(p.y)}" r="{radius}">'
            f"<title>{escape(p.label)}</title></circle>"
        )
    parts.append(_draw_line(line, x, y, format_number))
    return draw_figure(title, draw_svg(title, height, parts), note, legend)


def _find_extent(series: Sequence[Series], floor: float | None, ceiling: float | None) -> tuple[float, float]:
    values = [y for s in series for _, y in s.points if y is not None]
    values += [v for s in series for interval in s.band if interval for v in interval]
    values += [v for v in (floor, ceiling) if v is not None]
    return min(values), max(values)


def _split_into_runs(series: Series) -> Iterator[list[tuple[float, float]]]:
    """The stretches of a line without a missing value."""
    run: list[tuple[float, float]] = []
    for x, y in series.points:
        if y is None:
            if run:
                yield run
            run = []
        else:
            run.append((x, y))
    if run:
        yield run


def _draw_line(series: Series, x: Scale, y: Scale, show: Format) -> str:
    parts = []
    dots = len(series.points) <= 40
    for run in _split_into_runs(series):
        path = "L".join(f"{x(a)},{y(b)}" for a, b in run)
        parts.append(f'<path class="line {series.colour}" d="M{path}"/>')
        parts += [
            f'<circle class="dot {series.colour}" cx="{x(a)}" cy="{y(b)}" r="2.6">'
            f"<title>{escape(f'{series.label}, {format_number(a)}: {show(b)}')}</title></circle>"
            for a, b in run
            if dots or len(run) == 1
        ]
    return "".join(parts)


def _draw_band(series: Series, x: Scale, y: Scale) -> str:
    points = [(p[0], b) for p, b in zip(series.points, series.band, strict=False) if b]
    if len(points) < 2:
        return ""
    upper = [f"{x(a)},{y(high)}" for a, (_, high) in points]
    lower = [f"{x(a)},{y(low)}" for a, (low, _) in reversed(points)]
    return f'<path class="band {series.colour}" d="M{"L".join(upper + lower)}Z"/>'


def _draw_end_labels(series: Sequence[Series], x: Scale, y: Scale, show: Format) -> str:
    lasts = sorted(
        (y(value), place, value, s.colour)
        for s in series
        for place, value in [next((a, b) for a, b in reversed(s.points) if b is not None)]
    )
    parts, free = [], -math.inf
    for top, place, value, colour in lasts:
        at = max(top + 4, free)
        free = at + 13
        parts.append(f'<text class="last {colour}" x="{x(place) + 7:g}" y="{at:g}">{escape(show(value))}</text>')
    return "".join(parts)


def _find_start(rows: Sequence[Interval]) -> float:
    """Where the picture begins, right of the names."""
    longest = max((len(row.label) for row in rows), default=0)
    return max(_NAMES, _LETTER * min(longest, _MAX_NAME)) + 8


_Draw = Callable[[Interval, Scale, float, Format], str]


def _draw_rows(
    rows: Sequence[Interval], x: Scale, marks: Sequence[float], show: Format, draw: _Draw
) -> tuple[list[str], float]:
    groups = list(dict.fromkeys(r.group for r in rows))
    parts: list[str] = []
    top = 6.0
    for group in groups:
        if len(groups) > 1:
            parts.append(f'<text class="group" x="2" y="{top + 13}">{escape(group)}</text>')
            top += 20
        for row in (r for r in rows if r.group == group):
            middle = top + _ROW / 2
            name = row.label if len(row.label) <= _MAX_NAME else f"{row.label[: _MAX_NAME - 1]}…"
            parts.append(f'<text class="tick end" x="{x.start - 8:g}" y="{middle + 4}">{escape(name)}</text>')
            parts.append(draw(row, x, middle, show))
            top += _ROW
        top += 8
    grid = [f'<line class="grid" x1="{x(m)}" x2="{x(m)}" y1="4" y2="{top}"/>' for m in marks]
    labels = [f'<text class="tick middle" x="{x(m)}" y="{top + 16}">{escape(show(m))}</text>' for m in marks]
    return grid + labels + parts, top + 26


def _draw_bar(row: Interval, x: Scale, middle: float, show: Format) -> str:
    return (
        f'<g><title>{_write_tip(row, show)}</title><rect class="bar {row.colour}" x="{x(0)}" y="{middle - 7}" '
        f'height="14" rx="2" width="{x(row.value) - x(0):g}"/>{_draw_range(row, x, middle)}'
        f'<text class="value" x="{x(row.high) + 7:g}" y="{middle + 4}">{escape(show(row.value))}</text></g>'
    )


def _draw_whisker(row: Interval, x: Scale, middle: float, show: Format) -> str:
    return (
        f"<g><title>{_write_tip(row, show)}</title>{_draw_range(row, x, middle)}"
        f'<circle class="point {row.colour}" cx="{x(row.value)}" cy="{middle}" r="5"/>'
        f'<text class="value" x="{x(row.high) + 8:g}" y="{middle + 4}">{escape(show(row.value))}</text></g>'
    )


def _write_tip(row: Interval, show: Format) -> str:
    """What the mark says when the pointer is over it."""
    return escape(f"{row.group}, {row.label}: {show(row.value)} (95% interval {show(row.low)} to {show(row.high)})")


def _draw_range(row: Interval, x: Scale, middle: float) -> str:
    low, high = x(row.low), x(row.high)
    return f'<path class="error" d="M{low},{middle}H{high}M{low},{middle - 4}v8M{high},{middle - 4}v8"/>'
