"""What all pages share: their templates, styles and scripts, and how a missing value is written."""

from __future__ import annotations

from collections.abc import Callable
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
