import re
from importlib.resources import files

import pytest

from steptool.report.assets import FURTHER, KNOWN, model_colours

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


def test_a_model_has_the_same_colour_whatever_it_is_compared_with() -> None:
    for models in (["steptool", "base"], ["gpt", "base", "warm_start", "steptool"]):
        colours = model_colours(models)
        assert list(colours) == models
        assert colours["base"] == KNOWN["base"] and colours["steptool"] == KNOWN["steptool"]
    assert model_colours(["gpt", "base"])["gpt"] == model_colours(["gpt", "champion"])["gpt"]


def test_models_of_a_page_have_different_colours_as_long_as_there_are_any() -> None:
    models = [f"policy {number}" for number in range(len(FURTHER) + len(KNOWN))]
    assert len({*model_colours(models).values()}) == len(models)
    assert len(model_colours([*models, "one more"])) == len(models) + 1
