"""Python functions as tools: each episode has an object of its own, and exceptions become failed steps."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self

from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.catalog import import_object
from steptool.environments.functions.signatures import function_schema
from steptool.environments.schema import SchemaError, arguments_check, check_tools
from steptool.records import Query, StepStatus, ToolCall, ToolSchema, Trajectory

VERDICT = "solved"
"""Name of the function that is no tool but judges an episode: solved(final_answer, reference) -> float | None."""
STATE = "state"
"""Key of `Query.reference.environment` with the keyword arguments that an episode's object is made with."""

Check = Callable[[Mapping[str, Any]], str | None]
"""Says what is wrong with the arguments of a call, if anything."""


class FunctionsEnvironment(Environment):
    """The class or the functions that `tools.functions` names.

    Of a class each episode gets an object of its own, whose public methods are the tools; functions have no state.
    Raises ConfigError if what is named cannot be imported or a function cannot be described by a schema.
    """

    name, blocking = "functions", True

    @classmethod
    def open(cls, tools: ToolsConfig, recordings: Iterable[Trajectory] = ()) -> Self:
        """The tools that `tools.functions` names."""
        return cls(tools.functions)

    def __init__(self, named: str) -> None:
        self._make, functions = _toolbox(
            named, import_object(named, "tools.functions", "a class or a list of functions")
        )
        self._tools = [function_schema(function, name) for name, function in functions.items() if name != VERDICT]
        try:
            check_tools(self._tools, f"tools.functions '{named}'")
        except SchemaError as error:
            raise ConfigError(str(error)) from error
        described = [tool["function"] for tool in self._tools]
        self._checks = {tool["name"]: arguments_check(tool["parameters"]) for tool in described}

    def tools(self) -> Sequence[ToolSchema]:
        """One schema per function, in the order in which they are written down."""
        return self._tools

    def reset(self, query: Query) -> FunctionsSession:
        """A session whose object is made at the first call.

        Raises ValueError for a `reference.state` that the class does not take.
        """
        state = query.reference.environment.get(STATE, {})
        try:
            inspect.signature(self._make).bind(**state)
        except TypeError as error:
            where = f"query '{query.query_id}': field 'reference.{STATE}'"
            raise ValueError(
                f"{where}: expected keyword arguments of tools.functions, got {state!r} ({error})"
            ) from None
        return FunctionsSession(self._checks, lambda: self._make(**copy.deepcopy(state)), query.reference.to_json())


class FunctionsSession(Session):
    """One episode with an object of its own. A function never sees an object that others hold as well."""

    def __init__(self, checks: Mapping[str, Check], make: Callable[[], Any], reference: Mapping[str, Any]) -> None:
        self._checks, self._make, self._reference = checks, make, reference
        self._made: Any = None

    def call(self, call: ToolCall) -> ToolResult:
        """The function's result as text; a failed step for what it, or the making of its object, raises."""
        check = self._checks.get(call.name)
        if check is None:
            return _failed(StepStatus.UNKNOWN_TOOL, f"no function is named '{call.name}'")
        if problem := check(call.arguments):
            return _failed(StepStatus.INVALID_ARGUMENTS, problem)
        try:
            return ToolResult(StepStatus.OK, _text(_run(getattr(self._object(), call.name), **call.arguments)))
        except (Exception, SystemExit) as error:
            return _failed(StepStatus.TOOL_ERROR, _said(error))

    def solved(self, final_answer: str | None) -> float | None:
        """What `solved` returns; None without such a function, and with a warning where it fails."""
        try:
            check = getattr(self._object(), VERDICT, None)
            return None if check is None else _share(_run(check, final_answer, dict(self._reference)))
        except (Exception, SystemExit) as error:
            warnings.warn(f"tools.functions: no verdict from '{VERDICT}': {_said(error)}", RuntimeWarning, stacklevel=2)
            return None

    def _object(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


def _run(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    result = function(*copy.deepcopy(arguments), **copy.deepcopy(named))
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _text(result: Any) -> str:
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the result cannot be written as JSON: {error}") from None
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written to any file


def _share(verdict: Any) -> float | None:
    if verdict is not None and not 0 <= verdict <= 1:
        raise ValueError(f"expected a number from 0 to 1 or None, got {verdict!r}")
    return None if verdict is None else float(verdict)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _failed(status: StepStatus, reason: str) -> ToolResult:
    return ToolResult(status, _text({"error": reason}))


def _toolbox(named: str, found: Any) -> tuple[Callable[..., Any], dict[str, Callable[..., Any]]]:
    """How the object of an episode is made, and its functions by name."""
    if inspect.isclass(found):
        names = dict.fromkeys(name for base in reversed(found.__mro__) for name in vars(base) if name[0] != "_")
        methods = {name: getattr(found, name) for name in names if _is_python(getattr(found, name))}
        if not methods:
            raise ConfigError(f"tools.functions: the class '{named}' has no public methods, which would be its tools")
        return found, methods
    if not isinstance(found, list | tuple) or not found or not all(map(_is_python, found)):
        raise ConfigError(f"tools.functions: '{named}': expected a class or a list of functions, got {found!r}")
    functions = {function.__name__: function for function in found}
    if len(functions) < len(found):
        raise ConfigError(
            f"tools.functions: '{named}' lists several functions of one name: {[f.__name__ for f in found]}"
        )
    stateless = SimpleNamespace(**functions)
    return lambda: stateless, functions


def _is_python(value: Any) -> bool:
    """Whether it is a function or a method written in Python, wrapped or not."""
    return hasattr(inspect.unwrap(value), "__code__")
