"""Python functions as tools: schemas from type hints and docstrings, and JSON values as the types of the hints."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Annotated, Any, NotRequired, Required, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from steptool.artifacts.errors import describe_with_class
from steptool.chat.messages import annotate_tool
from steptool.config.base import ConfigError
from steptool.environments.base import ToolResult, VerdictError, find_end, import_object
from steptool.records import StepStatus, ToolSchema

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


def describe_function(function: Callable[..., Any], name: str) -> ToolSchema:
    """The schema of a function under this name.

    Raises ConfigError for a function without type hints or a docstring, and for a type hint that JSON has no form of.
    """
    from transformers.utils.chat_template_utils import parse_google_format_docstring

    try:
        description, texts, _ = parse_google_format_docstring(_read_docstring(function))
        if not description:
            raise ValueError("its docstring does not say what it does")
        parameters = _write_out_definitions(_make_arguments_adapter(function, texts or {}).json_schema())
    except (ValueError, TypeError, NameError, PydanticUserError) as error:
        raise ConfigError(f"tools.functions: '{name}': {_take_first_line(error)}; {_EXPECTED}") from error
    parameters = {"type": "object", "properties": {}} | {k: v for k, v in parameters.items() if k != "$defs"}
    declaration = {"name": name, "description": description, "parameters": parameters}
    return annotate_tool({"type": "function", "function": declaration}, getattr(function, _READ_ONLY, None))


class ArgumentTypes:
    """Turns the JSON arguments of a function's calls into what its type hints say: enums, dataclasses, dates."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._adapter = _make_arguments_adapter(function, None)

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments to call the function with. Raises ArgumentError naming the first that does not fit."""
        try:
            converted: dict[str, Any] = self._adapter.validate_python(dict(arguments))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            path = ".".join(map(str, first["loc"]))
            raise ArgumentError(f"argument '{path}' is not valid: {first['msg']}.") from None
        return converted


def _read_docstring(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function)
    if not text:
        raise ValueError("it has no docstring")
    return text


def _make_arguments_adapter(
    function: Callable[..., Any], texts: Mapping[str, str] | None
) -> TypeAdapter[dict[str, Any]]:
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


def _write_out_definitions(
    schema: Any, definitions: Mapping[str, Any] | None = None, inside: tuple[str, ...] = ()
) -> Any:
    """The schema with its definitions in the places that refer to them, and without the titles that pydantic adds."""
    if isinstance(schema, list):
        return [_write_out_definitions(part, definitions, inside) for part in schema]
    if not isinstance(schema, dict):
        return schema
    by_name = schema.get("$defs", {}) if definitions is None else definitions
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.removeprefix(_DEFINITIONS)
        if name in inside:
            raise ValueError(f"the type {name} refers to itself, which no schema can write out")
        rest = {key: part for key, part in schema.items() if key != "$ref"}
        return _write_out_definitions({**by_name[name], **rest}, by_name, (*inside, name))
    parts = {key: part for key, part in schema.items() if key != "title" or not isinstance(part, str)}
    return {key: _write_out_definitions(part, by_name, inside) for key, part in parts.items()}


def _take_first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


VERDICT = "solved"
"""Name of the function that judges an episode: solved(final_answer, reference) -> float | None."""
NEXT_TURN = "next_turn"
"""Name of the function that plays the user: next_turn(final_answer, reference) -> str | None, what the user says
next."""
ENDED = "ended"
"""Name of the function that is asked after each call whether the episode is over: ended() -> bool."""
STATE_DIGEST = "state_digest"
"""Name of the function that names the state of the object: state_digest() -> str."""
_NO_TOOLS = (VERDICT, NEXT_TURN, ENDED, STATE_DIGEST)


@dataclass(frozen=True)
class Toolbox:
    """What a class or a list of functions offers."""

    make: Callable[..., Any]
    """Makes the object of an episode from the state of its task."""
    functions: Mapping[str, Callable[..., Any]]
    """The tools by name, without `solved`, `next_turn`, `ended` and `state_digest`."""

    @cached_property
    def argument_types(self) -> Mapping[str, ArgumentTypes]:
        """What turns the arguments of each function into what its hints say."""
        return {name: ArgumentTypes(function) for name, function in self.functions.items()}


def load_toolbox(named: str) -> Toolbox:
    """The class or the list of functions behind `package.module:name` or `path/to/file.py:name`.

    Raises ConfigError if it cannot be imported or is neither.
    """
    source = import_object(named, "tools.functions", "a class or a list of functions")
    if inspect.isclass(source):
        names = dict.fromkeys(name for base in reversed(source.__mro__) for name in vars(base) if name[0] != "_")
        methods = {name: getattr(source, name) for name in names if _is_python(getattr(source, name))}
        if not methods:
            raise ConfigError(f"tools.functions: the class '{named}' has no public methods, which would be its tools")
        return Toolbox(source, _select_tools(methods))
    if not isinstance(source, list | tuple) or not source or not all(map(_is_python, source)):
        raise ConfigError(f"tools.functions: '{named}': expected a class or a list of functions, got {source!r}")
    functions = {function.__name__: function for function in source}
    if len(functions) < len(source):
        function_names = [function.__name__ for function in source]
        raise ConfigError(f"tools.functions: '{named}' lists several functions of one name: {function_names}")
    stateless = SimpleNamespace(**functions)
    return Toolbox(lambda: stateless, _select_tools(functions))


class EpisodeTools:
    """The object of one episode, made at the first call. Whatever its code raises is a failed step or no verdict.

    Arguments, state and reference are copied: a function may keep and change what it gets. Coroutines run in one event
    loop, so that what one call opens another can use; one that takes longer than `seconds` is cancelled.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        state: Mapping[str, Any],
        reference: Mapping[str, Any],
        seconds: float = float("inf"),
    ) -> None:
        self.seconds = seconds
        """Seconds that a coroutine may take; may be set anew for each call."""
        self._toolbox, self._state, self._reference = toolbox, state, reference
        self._instance: Any = None
        self._loop: asyncio.Runner | None = None

    def start(self) -> None:
        """Make the object. Raises RuntimeError where that fails."""
        try:
            self._get_object()
        except BaseException as error:
            name = getattr(self._toolbox.make, "__name__", "the object")
            raise RuntimeError(f"tools.functions: making {name} failed: {describe_with_class(error)}") from None

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """The result of a function as text; a failed step for what it, or the making of its object, raises."""
        try:
            converted_arguments = self._toolbox.argument_types[name].convert(copy.deepcopy(dict(arguments)))
        except ArgumentError as error:
            return make_failed_result(StepStatus.INVALID_ARGUMENTS, str(error))
        except BaseException as error:  # a validator of a user's own type
            return make_failed_result(StepStatus.TOOL_ERROR, describe_with_class(error))
        try:
            text = _write_text(self._run(getattr(self._get_object(), name), **converted_arguments))
            return ToolResult(StepStatus.OK, text, ends_episode=bool(self._run_optional(ENDED)))
        except BaseException as error:  # KeyboardInterrupt and the like come from the tool: no key reaches this thread
            if end := find_end(error):
                return ToolResult(StepStatus.OK, _write_text(str(end)), ends_episode=True)
            return make_failed_result(StepStatus.TOOL_ERROR, _describe(error))

    def state_digest(self) -> str | None:
        """What `state_digest` returns; None without such a function. Raises RuntimeError where it fails."""
        return self._call_for_text(STATE_DIGEST)

    def solved(self, final_answer: str | None) -> float | None:
        """What `solved` returns; None without such a function. Raises VerdictError where it fails, and nothing else."""
        try:
            return _check_verdict(self._run_optional(VERDICT, final_answer, copy.deepcopy(dict(self._reference))))
        except BaseException as error:
            raise VerdictError(f"tools.functions: '{VERDICT}' failed: {_describe(error)}") from None

    def next_turn(self, final_answer: str) -> str | None:
        """What `next_turn` returns; None without such a function. Raises RuntimeError where it fails."""
        return self._call_for_text(NEXT_TURN, final_answer, copy.deepcopy(dict(self._reference)))

    def close(self) -> None:
        """End the event loop, and with it what still runs there."""
        if self._loop is not None:
            self._loop.close()

    def _get_object(self) -> Any:
        if self._instance is None:
            self._instance = self._toolbox.make(**copy.deepcopy(dict(self._state)))
        return self._instance

    def _call_for_text(self, name: str, *arguments: Any) -> str | None:
        try:
            text = self._run_optional(name, *arguments)
            if text is not None and not isinstance(text, str):
                raise TypeError(f"expected a text or None, got {text!r}")
            return text
        except BaseException as error:
            raise RuntimeError(f"tools.functions: '{name}' failed: {describe_with_class(error)}") from None

    def _run_optional(self, name: str, *arguments: Any) -> Any:
        """What the function of this name returns; None without such a function."""
        function = getattr(self._get_object(), name, None)
        return None if function is None else self._run(function, *arguments)

    def _run(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        if not inspect.isawaitable(result):
            return result
        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(_await(result, self.seconds))


def make_failed_result(status: StepStatus, reason: str) -> ToolResult:
    """A failed step that says why."""
    return ToolResult(status, _write_text({"error": reason}))


async def _await(result: Any, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await result
    except TimeoutError:
        if limit.expired():
            raise _OutOfTime(f"no answer within {seconds:.3g} s") from None
        raise


class _OutOfTime(Exception):
    """A coroutine took longer than it may, and was cancelled."""


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, _OutOfTime) else describe_with_class(error)


def _write_text(result: Any) -> str:
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"the result cannot be written as JSON: {error}") from None
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written to any file


def _check_verdict(verdict: Any) -> float | None:
    """The verdict as a number. Raises ValueError for one that is neither None nor in [0, 1]."""
    if verdict is not None and not 0 <= verdict <= 1:
        raise ValueError(f"expected a number from 0 to 1 or None, got {verdict!r}")
    return None if verdict is None else float(verdict)


def _select_tools(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    return {name: function for name, function in functions.items() if name not in _NO_TOOLS}


def _is_python(value: Any) -> bool:
    """Whether it is a function or a method written in Python, wrapped or not."""
    return hasattr(inspect.unwrap(value), "__code__")
