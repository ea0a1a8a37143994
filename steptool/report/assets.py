"""Templates, styles and scripts of the pages."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def templates() -> Environment:
    """Templates that escape what they are given and refuse a name that they are not."""
    return Environment(
        loader=PackageLoader("steptool", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(*names: str) -> Markup:
    """The text of these files of the package, one after the other."""
    folder = files("steptool.report")
    return Markup("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))
