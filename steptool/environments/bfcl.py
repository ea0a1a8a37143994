"""BFCL multi-turn as an environment: the benchmark's own tools, a user with several requests, the
benchmark's verdict.
"""

from __future__ import annotations

import copy
import decimal
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import Any

import mpmath

from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.bfcl_tasks import (
    CLASSES,
    find_data_folder,
    list_checks,
    list_parameters,
    list_schemas,
    load_class,
)
from steptool.records import Query, StepStatus, ToolCall, ToolSchema

_CONTAINERS = (dict, list, set)
MAX_DIGITS = 1000
"""Largest precision that a call may ask for, in digits."""
MAX_BITS = 1 << 16
"""Largest size of a power of whole numbers, in bits."""
MAX_ENTRIES = 10_000
"""A file system with this many files and folders refuses `cp`. An entry counts once for each path that leads to it."""
_DIGITS = {"logarithm": "precision", "square_root": "precision", "round_number": "decimal_places"}


class ScenarioTools:
    """Instances of the benchmark's classes with the state of a scenario. Toolboxes share nothing that can change.

    `scenario` holds "classes" (names), "config" (state by class) and "long_context" (whether files and answers are
    padded). It is not changed.
    """

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        config, padded = scenario["config"], scenario["long_context"]
        self._tools = {name: _make_tool(name, config.get(name, {}), padded) for name in scenario["classes"]}
        self._owners = {function: name for name in self._tools for function in list_schemas(name)}

    def __contains__(self, function: object) -> bool:
        return function in self._owners

    def problem(self, function: str, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments of a documented function by its schema; None if nothing is."""
        return list_checks(self._owners[function])[function](arguments)

    def run(self, function: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a function and write its result as the benchmark does. Raises KeyError if it is not documented."""
        owner = self._owners[function]
        tool = self._tools[owner]
        own_arguments = {**_find_mutable_defaults(owner, function), **arguments}
        for key, value in own_arguments.items():
            if isinstance(value, _CONTAINERS):
                own_arguments[key] = copy.deepcopy(value)
        try:
            if reason := _find_refusal(tool, function, own_arguments):
                return ToolResult.failure(StepStatus.TOOL_ERROR, reason)
            with _keep_precision() if owner == "MathAPI" else nullcontext():
                result = getattr(tool, function)(**own_arguments)
                status = StepStatus.TOOL_ERROR if _reports_error(result) else StepStatus.OK
                return ToolResult(status, _render_result(result))
        except Exception as error:  # whatever the benchmark's code raises is the answer, in the benchmark's words
            return ToolResult(StepStatus.TOOL_ERROR, f"Error during execution: {error}")

    def same_state(self, other: ScenarioTools) -> bool:
        """Whether all public attributes of all instances are equal: the benchmark's check of the state."""
        try:
            return all(
                _read_public_state(tool) == _read_public_state(other._tools[name]) for name, tool in self._tools.items()
            )
        except RecursionError:  # a folder that has been copied into itself
            return False


def _make_tool(name: str, config: Mapping[str, Any], padded: bool) -> Any:
    tool = load_class(name)()
    if hasattr(tool, "_load_scenario"):
        tool._load_scenario(copy.deepcopy(config), long_context=padded)
    if padded:  # the padding consists of objects of the benchmark's module, which must not be changed
        state = vars(tool)
        state.update({key: copy.deepcopy(value) for key, value in state.items() if isinstance(value, _CONTAINERS)})
    return tool


@cache
def _find_mutable_defaults(owner: str, function: str) -> dict[str, Any]:
    """Default values that a function could change, which would affect every later call; copies are passed instead."""
    signature = list_parameters(owner, function)
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


def _read_public_state(tool: Any) -> dict[str, Any]:
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


def _find_refusal(tool: Any, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why a call with valid arguments is refused: it would take too long to return. None for nearly all calls."""
    if name in _DIGITS and abs(arguments.get(_DIGITS[name], 0)) > MAX_DIGITS:
        return f"{_DIGITS[name]} must be between -{MAX_DIGITS} and {MAX_DIGITS}"
    if name == "power" and _count_bits(arguments["base"], arguments["exponent"]) > MAX_BITS:
        return "the result is too large"
    if name == "cp" and sum(1 for _ in islice(_list_entries(tool.root), MAX_ENTRIES)) == MAX_ENTRIES:
        return "the file system is full"
    return None


def _count_bits(base: float, exponent: float) -> int:
    """Bits of base ** exponent as a whole number; 0 where Python computes it as a float, which has a fixed size."""
    return base.bit_length() * exponent if isinstance(base, int) and isinstance(exponent, int) else 0


def _list_entries(folder: Any) -> Iterator[Any]:
    """All files and folders below a folder; endless where a folder has been copied into itself."""
    waiting = list(folder.contents.values())
    while waiting:
        entry = waiting.pop()
        yield entry
        waiting += getattr(entry, "contents", {}).values()


class BfclEnvironment(Environment):
    """The benchmark's executable tools. Raises ConfigError where its package is missing."""

    name = "bfcl"

    def __init__(self) -> None:
        find_data_folder()

    def reset(self, query: Query) -> BfclSession:
        """A session with the state that the query begins with."""
        return BfclSession(query)

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of all functions of all classes."""
        return [schema for name in CLASSES for schema in list_schemas(name).values()]


class BfclSession(Session):
    """One episode of one query.

    It is stricter than the benchmark, which runs whatever it can: a tool must have been offered, and arguments must fit
    its schema. Calls of the reference solution are always allowed: it calls a tool before it is offered in one task
    (multi_turn_miss_func_49), and breaks a schema in another and its variants (multi_turn_base_173).
    """

    def __init__(self, query: Query) -> None:
        self._reference, self._scenario = query.reference, query.reference.environment["bfcl"]
        self._turns = query.reference.turns or ()
        self._tools = ScenarioTools(self._scenario)
        self._reference_tools: ScenarioTools | None = None
        self._offered = self._list_names(query.tools)
        self._results: list[str] = []
        self._turn = 0
        self._made_call = False
        self._matched = True

    def call(self, call: ToolCall) -> ToolResult:
        """Check that the tool is offered and that the arguments fit its schema, and run it."""
        if not self.offers(call.name):
            return ToolResult.failure(StepStatus.UNKNOWN_TOOL, f"unknown tool {call.name}")
        self._made_call = True
        problem = self._tools.problem(call.name, call.arguments)
        if problem and call not in (self._reference.calls or ()):
            return ToolResult.failure(StepStatus.INVALID_ARGUMENTS, problem)
        result = self._tools.run(call.name, call.arguments)
        self._results.append(result.observation)
        return result

    def offers(self, name: str) -> bool:
        """Whether the user has offered this function by now, or the reference calls it in this turn."""
        return name in self._offered or (
            name in self._tools and any(name == call.name for call in self._reference_calls)
        )

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says next, with the schemas of tools that come with it; None after the last turn."""
        self._matched = self._matched and self._matches_reference()
        self._made_call = False
        self._turn += 1
        if self._turn == len(self._turns):
            return None
        self._offered |= self._list_names(self._scenario["later_tools"].get(str(self._turn), ()))
        return str(self._scenario["messages"][self._turn - 1])

    def solved(self, final_answer: str | None) -> float:
        """1 if every turn was answered and met the benchmark's criterion."""
        return float(self._matched and self._turn == len(self._turns))

    def _list_names(self, tools: Iterable[ToolSchema]) -> set[str]:
        """The names of the tools that are functions of the benchmark."""
        return {tool["function"]["name"] for tool in tools if tool["function"]["name"] in self._tools}

    @property
    def _reference_calls(self) -> Sequence[ToolCall]:
        """The reference's calls of this turn; none after the last one."""
        return (*self._turns, ())[self._turn]

    def _matches_reference(self) -> bool:
        """The benchmark's criterion at the end of a turn. Later turns cannot make up for a turn that fails it.

        It applies to turns in which the reference makes calls. The policy must have made a call too, the public state
        of all tools must equal that of the reference, and the policy's results so far must contain the reference's
        results of the turn, each at least as often.
        """
        if not self._reference_calls:
            return True
        self._reference_tools = self._reference_tools or ScenarioTools(self._scenario)
        reference_results = Counter(
            self._reference_tools.run(call.name, call.arguments).observation for call in self._reference_calls
        )
        return (
            self._made_call
            and reference_results <= Counter(self._results)
            and self._tools.same_state(self._reference_tools)
        )
