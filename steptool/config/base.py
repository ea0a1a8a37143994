"""The base of all sections of a configuration, and the texts of the errors for a wrong configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

_MOST_FIELDS = 20
"""Largest number of wrong fields that an error explains."""


def explain_refusal(error: ValidationError, model: type[BaseModel], example: str) -> str:
    """The text of the error: what is wrong, with a line for each field. `example` is the file that shows every
    field."""
    errors = error.errors(include_url=False)
    problems = [_explain_field(details, model, example) for details in errors[:_MOST_FIELDS]]
    return refuse(problems + ([f"and {len(errors) - _MOST_FIELDS} more"] if len(errors) > _MOST_FIELDS else []))


def refuse(problems: Iterable[str]) -> str:
    """The text of a refusal: the first problem in the first line, each further one in a line of its own."""
    return "the configuration was refused: " + "\n  ".join(problems)


def suggest_spelling(word: str, candidates: Iterable[str]) -> str:
    """A question about the candidate that is closest to the word; empty if none is close."""
    close = get_close_matches(word, list(candidates), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain_field(details: ErrorDetails, model: type[BaseModel], example: str) -> str:
    location = details["loc"]
    field = ".".join(str(part) for part in location)
    if details["type"] == "extra_forbidden":
        suggestion = suggest_spelling(str(location[-1]), _list_field_names(model, location[:-1]))
        return f"unknown field '{field}': remove it, or see {example} for all fields{suggestion}"
    expected, value = details["msg"].removeprefix("Value error, "), details["input"]
    if details["type"] == "value_error" and (isinstance(value, dict | list) or repr(value) in expected):
        return f"field '{field}': {expected}" if field else expected
    expected = expected[0].lower() + expected[1:]
    if details["type"] == "model_type":
        expected = "expected a section of fields; a section without any is left out"
    suggestion = ""
    if details["type"] in ("literal_error", "enum") and isinstance(value, str):
        suggestion = suggest_spelling(value, _find_quoted(str(details.get("ctx", {}).get("expected", ""))))
    value_text = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}..."
    return f"field '{field}': {expected}, got {value_text} ({type(value).__name__}){suggestion}"


def _list_field_names(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The fields of the section at a location."""
    section: Any = model
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list, whose type has been found with the list's field
        if not (isinstance(section, type) and issubclass(section, BaseModel)) or part not in section.model_fields:
            return []
        section = find_section(section.model_fields[part].annotation)
    return list(section.model_fields) if section else []


def find_section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or as the items of a list; None if it holds none."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := find_section(part))), None)


def _find_quoted(text: str) -> list[str]:
    """The words in single quotes, as pydantic lists the values of a closed set."""
    return text.split("'")[1::2]


Positive = Annotated[int, Field(gt=0, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
FreeMapping = dict[Any, Any]
"""A mapping whose fields this package does not know, such as those of a request. Its keys are Any because flytekit
would pickle a dict[str, Any]."""
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]
"""A factor of a loss or of a reward."""
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1_000_000)]
"""A limit of time. Python's own waits fail with numbers that are much larger."""
HIGHEST_TEMPERATURE = 100.0
"""A temperature above this samples all tokens alike."""
LOWEST_TEMPERATURE = 0.01
"""Log-probabilities of sampling below this leave the range of the numbers."""


class ConfigError(Exception):
    """A configuration that cannot be run. Its text names the field and says what was expected."""


class StrictModel(BaseModel):
    """A section of a configuration.

    Unknown fields are refused, values are not converted to another type, and infinite numbers are refused. The string
    below a field documents it. The commented YAML file, the JSON schema and the page of all fields are made from these
    strings.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The schema without documentation, made once.

        flytekit asks for it with every task that takes a configuration, and registers a copy with each.
        """
        return _make_schema(super().model_json_schema, *args, **kwargs)


@cache
def _make_schema(make: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    schema: dict[str, Any] = _drop_descriptions(make(*args, **kwargs))
    return schema


def _drop_descriptions(schema: Any) -> Any:
    """The schema without the texts that describe it; a field that is called description stays."""
    if isinstance(schema, dict):
        entries = {k: v for k, v in schema.items() if not (k == "description" and isinstance(v, str))}
        return {k: _drop_descriptions(v) for k, v in entries.items()}
    return [_drop_descriptions(item) for item in schema] if isinstance(schema, list) else schema
