"""BFCL multi-turn as an environment: a user with several wishes, tools that may come late, the benchmark's verdict."""

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
    """One run of one query.

    Stricter than the benchmark, which runs whatever it can: a tool must have been offered, and arguments must fit its
    schema. What the reference does stands as it is: it calls a tool before it is offered in one task
    (multi_turn_miss_func_49), and breaks a schema in another and its variants (multi_turn_base_173).
    """

    def __init__(self, query: Query) -> None:
        self._reference, self._scenario = query.reference, query.reference.environment["bfcl"]
        self._turns = query.reference.turns or ()
        self._tools = Toolbox(self._scenario)
        self._truth: Toolbox | None = None
        self._offered = self._known(query.tools)
        self._results: list[str] = []
        self._turn = 0
        self._called = False
        self._right = True

    def call(self, call: ToolCall) -> ToolResult:
        """Check that the tool is offered and that the arguments fit its schema, and run it."""
        if not self.offers(call.name):
            return _refused(StepStatus.UNKNOWN_TOOL, f"unknown tool {call.name}")
        self._called = True
        problem = self._tools.problem(call.name, call.arguments)
        if problem and call not in (self._reference.calls or ()):
            return _refused(StepStatus.INVALID_ARGUMENTS, problem)
        result = self._tools.run(call.name, call.arguments)
        self._results.append(result.observation)
        return result

    def offers(self, name: str) -> bool:
        """Whether the user has offered this function by now, or the reference calls it in this turn."""
        return name in self._offered or (name in self._tools and any(name == call.name for call in self._wanted))

    def next_turn(self, final_answer: str) -> str | None:
        """What the user says next, with the schemas of tools that come with it; None after the last turn."""
        self._right = self._right and self._as_wanted()
        self._called = False
        self._turn += 1
        if self._turn == len(self._turns):
            return None
        self._offered |= self._known(self._scenario["later_tools"].get(str(self._turn), ()))
        return str(self._scenario["messages"][self._turn - 1])

    def solved(self, final_answer: str | None) -> float:
        """1 if every turn was answered and each left the state and the results that the reference leaves."""
        return float(self._right and self._turn == len(self._turns))

    def _known(self, tools: Iterable[ToolSchema]) -> set[str]:
        """Names of those of the tools that the benchmark has."""
        return {tool["function"]["name"] for tool in tools if tool["function"]["name"] in self._tools}

    @property
    def _wanted(self) -> Sequence[ToolCall]:
        """The reference's calls of this turn; none after the last one."""
        return (*self._turns, ())[self._turn]

    def _as_wanted(self) -> bool:
        """The benchmark's criterion at the end of a turn. What fails it is mended by nothing that comes later.

        If the reference makes calls in the turn: the policy has made one too, the public state of all tools is the
        same, and the reference's results of the turn are among all that the policy has had so far, each as often.
        """
        if not self._wanted:
            return True
        self._truth = self._truth or Toolbox(self._scenario)
        wanted = Counter(self._truth.run(call.name, call.arguments).observation for call in self._wanted)
        return self._called and wanted <= Counter(self._results) and self._tools.same_state(self._truth)


def _refused(status: StepStatus, reason: str) -> ToolResult:
    return ToolResult(status, json.dumps({"error": reason}, ensure_ascii=False))
