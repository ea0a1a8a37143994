"""Arguments of Python functions: hints and docstrings become schemas, and JSON values become what the hints say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired, Required, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from steptool.chat.tools import annotate_tool
from steptool.config.base import ConfigError
from steptool.records import ToolSchema

F = TypeVar("F", bound=Callable[..., Any])
_READ_ONLY = "__reads_only__"
_EXPECTED = (
    "each function needs type hints and a docstring in Google's style: what it does, and under 'Args:' one line "
    "'name: what it is' for each argument"
)
_NAMED_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_DEFINITIONS = "#/$defs/"


class ArgumentError(ValueError):
    """A value cannot become what the type hint of its argument says."""


def read_only(function: F) -> F:
    """Decorate a function that changes nothing, so that annotators can tell looking from writing."""
    setattr(function, _READ_ONLY, True)
    return function


def function_schema(function: Callable[..., Any], name: str) -> ToolSchema:
    """The schema of a function under this name.

    Raises ConfigError for a function without type hints or a docstring, and for a type hint that JSON has no form of.
    """
    from transformers.utils.chat_template_utils import parse_google_format_docstring

    try:
        description, texts, _ = parse_google_format_docstring(_docstring(function))
        if not description:
            raise ValueError("its docstring does not say what it does")
        parameters = _inline(_arguments_adapter(function, texts or {}).json_schema())
    except (ValueError, TypeError, NameError, PydanticUserError) as error:
        raise ConfigError(f"tools.functions: '{name}': {_first_line(error)}; {_EXPECTED}") from error
    parameters = {"type": "object", "properties": {}} | {k: v for k, v in parameters.items() if k != "$defs"}
    described = {"name": name, "description": description, "parameters": parameters}
    return annotate_tool({"type": "function", "function": described}, getattr(function, _READ_ONLY, None))


class ArgumentTypes:
    """Turns the JSON arguments of a function's calls into what its type hints say: enums, dataclasses, dates."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._adapter = _arguments_adapter(function, None)

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments to call the function with. Raises ArgumentError naming the first that does not fit."""
        try:
            converted: dict[str, Any] = self._adapter.validate_python(dict(arguments))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            path = ".".join(map(str, first["loc"]))
            raise ArgumentError(f"argument '{path}' is not valid: {first['msg']}.") from None
        return converted


def _docstring(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function)
    if not text:
        raise ValueError("it has no docstring")
    return text


def _arguments_adapter(function: Callable[..., Any], texts: Mapping[str, str] | None) -> TypeAdapter[dict[str, Any]]:
    """A type whose keys are the function's arguments. With `texts`, each argument needs its description in them."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        name = parameter.name
        if position == 0 and name in ("self", "cls") and name not in hints:
            continue
        if parameter.kind not in _NAMED_BY_KEYWORD:
            raise TypeError(f"argument '{parameter}' cannot be given by its name")
        if name not in hints:
            raise TypeError(f"Argument {name} is missing a type hint")
        hint = hints[name]
        if texts is not None:
            if name not in texts:
                raise ValueError(f"its docstring has no description for the argument '{name}'")
            hint = Annotated[hint, Field(description=texts[name].strip())]
        fields[name] = Required[hint] if parameter.default is inspect.Parameter.empty else NotRequired[hint]
    return TypeAdapter(TypedDict("Arguments", fields))  # type: ignore[operator]


def _inline(schema: Any, definitions: Mapping[str, Any] | None = None, inside: tuple[str, ...] = ()) -> Any:
    """The schema with its definitions in the places that refer to them, and without the titles that pydantic adds."""
    if isinstance(schema, list):
        return [_inline(part, definitions, inside) for part in schema]
    if not isinstance(schema, dict):
        return schema
    by_name = schema.get("$defs", {}) if definitions is None else definitions
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.removeprefix(_DEFINITIONS)
        if name in inside:
            raise ValueError(f"the type {name} refers to itself, which no schema can write out")
        rest = {key: part for key, part in schema.items() if key != "$ref"}
        return _inline({**by_name[name], **rest}, by_name, (*inside, name))
    kept = {key: part for key, part in schema.items() if key != "title" or not isinstance(part, str)}
    return {key: _inline(part, by_name, inside) for key, part in kept.items()}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
