"""What configurations are made of: strict sections whose fields are all known, of their type and documented."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
FreeMapping = dict[Any, Any]
"""Fields that are not known here, such as those of a request. flytekit would pickle a dict[str, Any]."""
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(Exception):
    """A configuration that cannot be run. Its text names the field and says what was expected."""


class StrictModel(BaseModel):
    """A section of a configuration.

    Unknown fields are refused, values are not converted to another type, and infinite numbers are refused. The string
    below a field is its documentation, from which the commented YAML file, the JSON schema and the page are made.
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
        kept = {k: v for k, v in schema.items() if not (k == "description" and isinstance(v, str))}
        return {k: _drop_descriptions(v) for k, v in kept.items()}
    return [_drop_descriptions(item) for item in schema] if isinstance(schema, list) else schema
