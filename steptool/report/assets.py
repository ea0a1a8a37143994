"""What all pages share: templates, styles and scripts, how a missing value is written, one colour for one model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

DASH = "–"
"""Stands for a value that is missing."""


def templates(**formats: Callable[[Any], str]) -> Environment:
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
    environment.filters |= {name: _or_dash(form) for name, form in formats.items()}
    return environment


def asset(*names: str) -> Markup:
    """The text of these styles or scripts, one after the other."""
    folder = files("steptool.report") / "static"
    return Markup("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))


def _or_dash(form: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: DASH if value is None else form(value)


KNOWN = {"base": "c-base", "warm_start": "c-warm_start", "steptool": "c-steptool", "champion": "c-one"}
"""Classes of the models that the workflows themselves name."""
FURTHER = ("c-two", "c-three", "c-four", "c-five", "c-six")
"""Classes of all other models, and after these the known ones that a page does not need."""


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """The CSS class of each model. Its name decides, and the next free class follows where two names meet."""
    colours: dict[str, str] = {model: KNOWN[model] for model in models if model in KNOWN}
    for model in sorted({*models} - KNOWN.keys()):
        first = hashlib.sha256(model.encode()).digest()[0]
        order = [*(FURTHER[(first + step) % len(FURTHER)] for step in range(len(FURTHER))), *KNOWN.values()]
        colours[model] = next((colour for colour in order if colour not in colours.values()), order[0])
    return {model: colours[model] for model in dict.fromkeys(models)}
