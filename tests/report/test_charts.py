import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.report.elements import (
    WIDTH,
    Bubble,
    Interval,
    Scale,
    Series,
    choose_ticks,
    draw_bubbles,
    draw_differences,
    draw_interval_bars,
    draw_lines,
    format_number,
    format_percent,
)

finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 6))


def test_ticks_by_hand():
    assert choose_ticks(0, 1) == [0, 0.5, 1]
    assert choose_ticks(0.02, 0.17) == [0, 0.05, 0.1, 0.15, 0.2]
    assert choose_ticks(-3, 11) == [-5, 0, 5, 10, 15]
    assert choose_ticks(2, 2) == [1.5, 2, 2.5]
    assert choose_ticks(0, 3, 4, smallest=1) == [0, 1, 2, 3]


@given(finite, finite)
def test_ticks_cover_the_range(a, b):
    low, high = sorted((a, b))
    marks = choose_ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert marks[0] <= low + slack and marks[-1] >= high - slack and 2 <= len(marks) <= 8


def test_scale_turns_values_into_places():
    assert Scale(0, 10, 100, 200)(2.5) == 125
    assert Scale(0, 1, 200, 100)(0.25) == 175
    assert Scale(3, 3, 0, 10)(3) == 5


def test_numbers_as_people_read_them():
    assert [format_percent(v) for v in (0, 0.001, 0.714, 0.999, 1, -0.2)] == [
        "0%",
        "<1%",
        "71%",
        ">99%",
        "100%",
        "−20%",
    ]
    assert [format_number(v) for v in (0, 0.1234, -2.5, 12345, 0.00002)] == ["0", "0.123", "−2.5", "12,345", "2.0e−05"]


def _root(figure: str) -> ET.Element:
    return ET.fromstring(figure)  # raises where the figure is not well formed


def test_a_line_goes_through_its_points():
    root = _root(draw_lines("solved", [Series("a", [(0, 0.0), (1, 1.0), (2, 0.5)], "c-one")], floor=0, ceiling=1))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02) and y0 > y2 > y1
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.02)
    assert [t.text for t in root.iter("title")] == ["a, 0: 0", "a, 1: 1", "a, 2: 0.5"]


def test_a_missing_value_breaks_the_line():
    root = _root(draw_lines("x", [Series("a", [(0, 1.0), (1, None), (2, 3.0), (3, 2.0)], "c-one")]))
    assert len([p for p in root.iter("path") if "line" in p.get("class")]) == 2


def test_several_series_have_a_legend_and_one_has_none():
    both = [Series("first", [(0, 1.0)], "c-one"), Series("<second>", [(0, 2.0)], "c-two")]
    assert [li.text for li in _root(draw_lines("x", both)).iter("li")] == ["first", "<second>"]
    assert not list(_root(draw_lines("x", both[:1])).iter("li"))


def test_a_chart_of_nothing_says_so():
    assert "Nothing was recorded" in draw_lines("x", [Series("a", [(0, None)], "c-one")])


def test_bars_are_as_long_as_their_values():
    rows = [Interval("all", "A", 0.5, 0.4, 0.6, "c-base"), Interval("all", "B", 0.25, 0.2, 0.3, "c-base")]
    bars = [float(r.get("width")) for r in _root(draw_interval_bars("x", rows)).iter("rect")]
    assert bars[0] == pytest.approx(2 * bars[1], abs=0.02)


@pytest.mark.parametrize("name", ["A", "embedded_dfsdt", "judge 1 some-model votes=3 temperature=0"])
def test_names_of_any_length_keep_to_their_room(name):
    root = _root(draw_interval_bars("x", [Interval("all", name, 0.5, 0.4, 0.6, "c-base")]))
    label = next(t for t in root.iter("text") if "end" in t.get("class"))
    (bar,) = root.iter("rect")
    assert 7.3 * len(label.text) <= float(label.get("x")) < float(bar.get("x")) < WIDTH / 2 + 20
    assert label.text == name or label.text.endswith("…")
    assert name in next(root.iter("title")).text


def test_a_difference_stands_on_its_side_of_zero():
    rows = [Interval("all", "up", 0.2, 0.1, 0.3, "c-base"), Interval("all", "down", -0.2, -0.3, -0.1, "c-bad")]
    root = _root(draw_differences("x", rows))
    zero = next(float(e.get("x1")) for e in root.iter("line") if e.get("class") == "zero")
    up, down = (float(c.get("cx")) for c in root.iter("circle"))
    assert down < zero < up and up - zero == pytest.approx(zero - down, abs=0.05)


def test_the_area_of_a_bubble_grows_with_its_count():
    points = [Bubble(3, 0.5, 1, "c-one", "one"), Bubble(4, 0.5, 9, "c-one", "nine")]
    line = Series("mean", [(3, 0.5), (4, 0.5)], "c-line")
    chart = draw_bubbles("x", points, line, x_label="n", y_label="r", x_range=(3, 4), y_range=(0, 1), largest=9)
    radii = [float(c.get("r")) for c in _root(chart).iter("circle") if "bubble" in c.get("class")]
    assert (radii[0] - 1.5) == pytest.approx(3 * (radii[1] - 1.5), abs=0.02)


@given(st.lists(st.tuples(st.integers(0, 500), st.none() | finite), min_size=1, max_size=60), st.text(max_size=20))
def test_whatever_is_drawn_stays_in_the_picture(points, label):
    label = "".join(c for c in label if c.isprintable())
    root = _root(draw_lines(label, [Series(label, sorted(points, key=lambda p: p[0]), "c-one")]))
    for path in root.iter("path"):
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.get("d")):
            assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= 216
