import re
from importlib.resources import files

import pytest

from steptool.report.elements import FURTHER, KNOWN, choose_colours

CSS = (files("steptool.report") / "static" / "theme.css").read_text(encoding="utf-8")
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme)) for scheme in CSS.split("@media")[:2])
BACKGROUNDS = ("paper", "card", "soft")


def luminance(colour: str) -> float:
    """Relative luminance after WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_can_be_read_on_every_background(scheme: dict[str, str]) -> None:
    colours = scheme.keys() - {*BACKGROUNDS, "line"}
    assert len(colours) == 13
    weak = {(c, b) for c in colours for b in BACKGROUNDS if contrast(scheme[c], scheme[b]) < 4.5}
    assert weak == set()


MIXED = re.compile(r"color-mix\(in srgb, var\(--(\w+)\) (\d+)%, var\(--(\w+)\)\)")


def mix(one: str, percent: int, other: str) -> str:
    """The colour that CSS's color-mix makes of two in sRGB."""
    parts = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (one, other)]
    return "#" + "".join(f"{round((a * percent + b * (100 - percent)) / 100):02x}" for a, b in zip(*parts, strict=True))


def test_a_mixture_by_hand() -> None:
    assert mix("#ff0000", 25, "#0000ff") == "#4000bf"  # 63.75 and 191.25


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_every_mixed_background(scheme: dict[str, str]) -> None:
    static = files("steptool.report") / "static"
    styles = "".join(file.read_text(encoding="utf-8") for file in static.iterdir() if file.name.endswith(".css"))
    backgrounds = {(one, int(percent), other) for one, percent, other in MIXED.findall(styles)}
    assert ("one", 14, "card") in backgrounds and ("warm", 10, "card") in backgrounds
    pairs = [(text, *background) for background in backgrounds for text in ("ink", "muted")]
    pairs += [("ink", "good", 50, "card"), ("ink", "bad", 50, "card")]  # the strongest tints of a step, in steps.js
    weak = [p for p in pairs if contrast(scheme[p[0]], mix(scheme[p[1]], p[2], scheme[p[3]])) < 4.5]
    assert weak == []


def test_no_text_is_made_fainter_by_opacity() -> None:
    static = files("steptool.report") / "static"
    styles = "".join(file.read_text(encoding="utf-8") for file in static.iterdir() if file.name.endswith(".css"))
    faint = {rule.strip() for rule in re.findall(r"([^{}]*)\{[^{}]*(?<!-)\bopacity:", styles)}
    assert faint == {".chart .band", ".chart .error", ".report .columns i"}  # shapes


def test_a_model_has_the_same_colour_whatever_it_is_compared_with() -> None:
    for models in (["steptool", "base"], ["gpt", "base", "warm_start", "steptool"]):
        colours = choose_colours(models)
        assert list(colours) == models
        assert colours["base"] == KNOWN["base"] and colours["steptool"] == KNOWN["steptool"]
    assert choose_colours(["gpt", "base"])["gpt"] == choose_colours(["gpt", "champion"])["gpt"]


def test_models_of_a_page_have_different_colours_as_long_as_there_are_any() -> None:
    models = [f"policy {number}" for number in range(len(FURTHER) + len(KNOWN))]
    assert len({*choose_colours(models).values()}) == len(models)
    assert len(choose_colours([*models, "one more"])) == len(models) + 1
