"""Schemas of Python functions: type hints and docstrings say what a function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from steptool.chat.tools import annotate_tool
from steptool.config.base import ConfigError
from steptool.records import ToolSchema

F = TypeVar("F", bound=Callable[..., Any])
_READ_ONLY = "__reads_only__"
_WANTED = (
    "each function needs type hints and a docstring in Google's style: what it does, and under 'Args:' one line "
    "'name: what it is' for each argument"
)
_NAMED_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def read_only(function: F) -> F:
    """Decorate a function that changes nothing, so that annotators can tell looking from writing."""
    setattr(function, _READ_ONLY, True)
    return function


def function_schema(function: Callable[..., Any], name: str) -> ToolSchema:
    """The schema of a function under this name. Raises ConfigError for one without type hints or a docstring."""
    from transformers.utils import get_json_schema

    try:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in _NAMED_BY_KEYWORD:
                raise TypeError(f"argument '{parameter}' cannot be given by its name")
        written = get_json_schema(function)["function"]
        if not written["description"]:
            raise ValueError("its docstring does not say what it does")
    except Exception as error:
        raise ConfigError(f"tools.functions: '{name}': {error}; {_WANTED}") from error
    described = {"name": name, "description": written["description"], "parameters": _nullable(written["parameters"])}
    return annotate_tool({"type": "function", "function": described}, getattr(function, _READ_ONLY, None))


def _nullable(schema: Any) -> Any:
    """The schema with OpenAPI's `nullable`, which no validator of JSON Schema knows, as a choice."""
    if isinstance(schema, list):
        return [_nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("nullable") is not True:
        return {key: _nullable(part) for key, part in schema.items()}
    said = {key: schema[key] for key in ("description",) if key in schema}
    rest = {key: _nullable(part) for key, part in schema.items() if key not in ("nullable", "description")}
    return {"anyOf": [rest, {"type": "null"}], **said}
