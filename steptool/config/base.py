"""What configurations are made of: strict sections of checked fields, and errors that say what was expected."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(Exception):
    """A configuration that cannot be run, with the field and what was expected."""


@cache
def _made(make: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    return make(*args, **kwargs)


class StrictModel(BaseModel):
    """Fields that are all known and of their type; nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As pydantic makes it, but once: flytekit asks again for every task that takes a configuration."""
        return _made(super().model_json_schema, *args, **kwargs)


def explain_refusal(error: ValidationError, example: str) -> str:
    """What is wrong, a line for each field; `example` is the file that shows every field."""
    lines = []
    for e in error.errors():
        field = ".".join(str(part) for part in e["loc"])
        if e["type"] == "extra_forbidden":
            lines.append(f"unknown field '{field}': remove it or see {example} for the fields there are")
        else:
            said, given = e["msg"][0].lower() + e["msg"][1:], e["input"]
            lines.append(f"field '{field}': {said}, got {given!r} ({type(given).__name__})")
    return "the configuration was refused\n  " + "\n  ".join(lines)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises ConfigError, with the file's name, if it holds anything else."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    return data
