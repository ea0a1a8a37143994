"""The benchmark's tools of one episode: its own instances, of which only the documented functions can be called."""

from __future__ import annotations

import copy
import decimal
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import Any

import mpmath

from steptool.environments.base import ToolResult
from steptool.environments.bfcl.package import checks, executable, parameters, schemas
from steptool.records import StepStatus

_CONTAINERS = (dict, list, set)
MAX_DIGITS = 1000
"""Digits of precision."""
MAX_BITS = 1 << 16
"""Bits of a power of whole numbers."""
MAX_ENTRIES = 10_000
"""Files and folders, each counted wherever it is seen, in a file system that takes another copy."""
_DIGITS = {"logarithm": "precision", "square_root": "precision", "round_number": "decimal_places"}


class Toolbox:
    """Instances of the benchmark's classes with the state of a scenario. Toolboxes share nothing that can change.

    `scenario` holds "classes" (names), "config" (state by class) and "long_context" (whether files and answers are
    padded). It is not changed.
    """

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        config, padded = scenario["config"], scenario["long_context"]
        self._tools = {name: _make_tool(name, config.get(name, {}), padded) for name in scenario["classes"]}
        self._owners = {function: name for name in self._tools for function in schemas(name)}

    def __contains__(self, function: object) -> bool:
        return function in self._owners

    def problem(self, function: str, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments of a documented function by its schema; None if nothing is."""
        return checks(self._owners[function])[function](arguments)

    def run(self, function: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a function and write its result as the benchmark does. Raises KeyError if it is not documented."""
        owner = self._owners[function]
        tool = self._tools[owner]
        copied = {**_mutable_defaults(owner, function), **arguments}
        for key, value in copied.items():
            if isinstance(value, _CONTAINERS):
                copied[key] = copy.deepcopy(value)
        try:
            if reason := _refusal(tool, function, copied):
                return ToolResult(StepStatus.TOOL_ERROR, json.dumps({"error": reason}))
            with _keep_precision() if owner == "MathAPI" else nullcontext():
                result = getattr(tool, function)(**copied)
                status = StepStatus.TOOL_ERROR if _reports_error(result) else StepStatus.OK
                return ToolResult(status, _render_result(result))
        except Exception as error:  # whatever the benchmark's code raises is the answer, in the benchmark's words
            return ToolResult(StepStatus.TOOL_ERROR, f"Error during execution: {error}")

    def same_state(self, other: Toolbox) -> bool:
        """Whether all public attributes of all instances are equal: the benchmark's check of the state."""
        try:
            return all(_public_state(tool) == _public_state(other._tools[name]) for name, tool in self._tools.items())
        except RecursionError:  # a folder that has been copied into itself
            return False


def _make_tool(name: str, config: Mapping[str, Any], padded: bool) -> Any:
    tool = executable(name)()
    if hasattr(tool, "_load_scenario"):
        tool._load_scenario(copy.deepcopy(config), long_context=padded)
    if padded:  # the padding consists of objects of the benchmark's module, which must not be changed
        state = vars(tool)
        state.update({key: copy.deepcopy(value) for key, value in state.items() if isinstance(value, _CONTAINERS)})
    return tool


@cache
def _mutable_defaults(owner: str, function: str) -> dict[str, Any]:
    """Default values that a function could change, which would affect every later call; copies are passed instead."""
    signature = parameters(owner, function)
    return {name: copy.deepcopy(p.default) for name, p in signature.items() if isinstance(p.default, _CONTAINERS)}


@contextmanager
def _keep_precision() -> Iterator[None]:
    """Restore the numeric precision, which the mathematical tools set for the whole process."""
    digits = mpmath.mp.dps
    try:
        with decimal.localcontext():
            yield
    finally:
        mpmath.mp.dps = digits


def _public_state(tool: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(tool).items() if not key.startswith("_")}


def _reports_error(result: Any) -> bool:
    """Whether a result reports an error: {"error": ...}, or a list of such an object or of one such sentence."""
    if isinstance(result, list) and len(result) == 1:
        result = {"error": ""} if str(result[0]).startswith("Error:") else result[0]
    return isinstance(result, dict) and "error" in result


def _render_result(result: Any) -> str:
    """Text stays as it is, an object becomes JSON if possible, and everything else is written as Python prints it."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            pass
    return str(result)


def _refusal(tool: Any, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why a call with valid arguments is not made: it would not return. None for nearly all calls."""
    if name in _DIGITS and abs(arguments.get(_DIGITS[name], 0)) > MAX_DIGITS:
        return f"{_DIGITS[name]} must be between -{MAX_DIGITS} and {MAX_DIGITS}"
    if name == "power" and _bits(arguments["base"], arguments["exponent"]) > MAX_BITS:
        return "the result is too large"
    if name == "cp" and sum(1 for _ in islice(_entries(tool.root), MAX_ENTRIES)) == MAX_ENTRIES:
        return "the file system is full"
    return None


def _bits(base: float, exponent: float) -> int:
    """Bits of base ** exponent as a whole number; 0 where it is computed as a float, which is bounded by itself."""
    return base.bit_length() * exponent if isinstance(base, int) and isinstance(exponent, int) else 0


def _entries(folder: Any) -> Iterator[Any]:
    """All files and folders below a folder; endless where a folder has been copied into itself."""
    waiting = list(folder.contents.values())
    while waiting:
        entry = waiting.pop()
        yield entry
        waiting += getattr(entry, "contents", {}).values()
