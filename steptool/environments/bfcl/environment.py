"""BFCL multi-turn as an environment: a user with several requests, tools that come later, the benchmark's verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.bfcl.package import CLASSES, data_folder, schemas
from steptool.environments.bfcl.toolbox import Toolbox
from steptool.records import Query, StepStatus, ToolCall, ToolSchema


class BfclEnvironment(Environment):
    """The benchmark's executable tools. Raises ConfigError where its package is missing."""

    name = "bfcl"

    def __init__(self) -> None:
        data_folder()

    def reset(self, query: Query) -> BfclSession:
        """A session with the state that the query begins with."""
        return BfclSession(query)

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of all functions of all classes."""
        return [schema for name in CLASSES for schema in schemas(name).values()]


class BfclSession(Session):
    """One episode of one query.

    It is stricter than the benchmark, which runs whatever it can: a tool must have been offered, and arguments must fit
    its schema. Calls of the reference solution are always allowed: it calls a tool before it is offered in one task
    (multi_turn_miss_func_49), and breaks a schema in another and its variants (multi_turn_base_173).
    """

    def __init__(self, query: Query) -> None:
        self._reference, self._scenario = query.reference, query.reference.environment["bfcl"]
        self._turns = query.reference.turns or ()
        self._tools = Toolbox(self._scenario)
        self._reference_tools: Toolbox | None = None
        self._offered = self._names_of(query.tools)
        self._results: list[str] = []
        self._turn = 0
        self._made_call = False
        self._matched = True

    def call(self, call: ToolCall) -> ToolResult:
        """Check that the tool is offered and that the arguments fit its schema, and run it."""
        if not self.offers(call.name):
            return _refuse(StepStatus.UNKNOWN_TOOL, f"unknown tool {call.name}")
        self._made_call = True
        problem = self._tools.problem(call.name, call.arguments)
        if problem and call not in (self._reference.calls or ()):
            return _refuse(StepStatus.INVALID_ARGUMENTS, problem)
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
        self._offered |= self._names_of(self._scenario["later_tools"].get(str(self._turn), ()))
        return str(self._scenario["messages"][self._turn - 1])

    def solved(self, final_answer: str | None) -> float:
        """1 if every turn was answered and met the benchmark's criterion."""
        return float(self._matched and self._turn == len(self._turns))

    def _names_of(self, tools: Iterable[ToolSchema]) -> set[str]:
        """The names of the tools that are functions of the benchmark."""
        return {tool["function"]["name"] for tool in tools if tool["function"]["name"] in self._tools}

    @property
    def _reference_calls(self) -> Sequence[ToolCall]:
        """The reference's calls of this turn; none after the last one."""
        return (*self._turns, ())[self._turn]

    def _matches_reference(self) -> bool:
        """The benchmark's criterion at the end of a turn. A turn that fails it cannot be made good later.

        It applies to turns in which the reference makes calls. The policy must have made a call too, the public state
        of all tools must equal that of the reference, and the policy's results so far must contain the reference's
        results of the turn, each at least as often.
        """
        if not self._reference_calls:
            return True
        self._reference_tools = self._reference_tools or Toolbox(self._scenario)
        reference_results = Counter(
            self._reference_tools.run(call.name, call.arguments).observation for call in self._reference_calls
        )
        return (
            self._made_call
            and reference_results <= Counter(self._results)
            and self._tools.same_state(self._reference_tools)
        )


def _refuse(status: StepStatus, reason: str) -> ToolResult:
    return ToolResult(status, json.dumps({"error": reason}, ensure_ascii=False))
