"""Tasks of the desk, drawn from seeds, and the scripted expert that solves them.

A query has one goal or several. The expert solves it, or takes shortcuts and makes mistakes as people do.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steptool.chat.messages import FINISH_SCHEMA, make_call_message, make_tool_message
from steptool.config import Config
from steptool.environments.desk.environment import (
    ALTERNATIVES,
    CITIES,
    CURRENCIES,
    TOOLS,
    Database,
    DeskSession,
    ToolFailure,
    make_database,
)
from steptool.environments.desk.goals import (
    COMPOSITIONS,
    CONDITIONAL,
    ERRANDS,
    HELDOUT,
    PLAIN,
    PROCEDURES,
    REFERENCES,
    VALIDATION,
    Call,
    Composition,
    Procedure,
)
from steptool.records import FINISH, Message, Query, Reference, Step, StepStatus, StopReason, ToolCall, Trajectory


@dataclass(frozen=True)
class Tier:
    """A group of queries of similar difficulty."""

    goals: tuple[int, ...]
    """Possible numbers of goals."""
    calls: range
    """Possible numbers of calls in the reference solution."""
    slack: int
    """Steps allowed beyond the needed calls and the Finish."""


SINGLE, SHORT, PAIR, LONG = "single", "short", "pair", "long"
TIERS = {
    SINGLE: Tier((1,), range(2, 8), 3),
    SHORT: Tier((2,), range(4, 8), 2),  # SHORT and PAIR are for pretraining only
    PAIR: Tier((2,), range(7, 13), 2),
    LONG: Tier((2, 3), range(7, 13), 2),
}
DISTRACTORS = 2
CONDITIONAL_SHARE = 0.4
"""Share of the errands that have a condition."""
DONE = "done"
"""Final answer of every episode: what was asked for has been reported by then."""
ERRAND = "errand"
"""Split of the queries for pretraining: their goals are errands, whose wording says what to do."""
_OPENINGS = ("", "please ", "hi, ", "i need you to ", "could you ")
_JOINS = (" and ", ", then ", " and also ")


@dataclass(frozen=True)
class Goal:
    """A composition with the values that the query names."""

    composition: Composition
    start: str
    literal: str

    @property
    def procedure(self) -> Procedure:
        """What is to be done with the entity."""
        name = self.composition[0]
        return PROCEDURES[name] if name in PROCEDURES else ERRANDS[name]

    def carry_out(self, call: Call) -> None:
        """Carry the goal out correctly and report its outcome."""
        call("report", value=self.procedure.run(call, self._resolve(call), self.literal))

    def take_shortcut(self, call: Call) -> None:
        """Carry it out without looking first."""
        call("report", value=self.procedure.shortcut(call, self._resolve(call), self.literal))

    def phrase(self, rng: random.Random) -> str:
        """One of its wordings."""
        reference_text = rng.choice(REFERENCES[self.composition[1]].phrases).format(x=self.start)
        return rng.choice(self.procedure.phrases).format(r=reference_text, l=self.literal)

    def _resolve(self, call: Call) -> str:
        return REFERENCES[self.composition[1]].resolve(call, self.start)


def record_calls(database: Database, calls: list[ToolCall]) -> Call:
    """A function that executes tools on the database and appends each call to `calls`."""

    def call(name: str, /, **arguments: str | int) -> dict[str, str]:
        calls.append(ToolCall(name, arguments))
        return {k: str(v) for k, v in TOOLS[name].run(database, **arguments).items()}

    return call


def list_compositions(split: str) -> tuple[Composition, ...]:
    """Compositions of the single-goal queries of a split."""
    special = {"heldout": HELDOUT, "validation": VALIDATION}
    return tuple(
        c for c in COMPOSITIONS if (c in special[split] if split in special else c not in HELDOUT | VALIDATION)
    )


def draw_combination_split(combination: Sequence[Composition]) -> str:
    """The split of a combination of training compositions, in any order: half train, a quarter each of the others."""
    text = "|".join(sorted(f"{p}/{r}" for p, r in combination))
    bucket = hashlib.sha256(text.encode()).digest()[0] % 4
    return ("train", "train", "validation", "heldout")[bucket]


def draw_query(split: str, tier: str, seed: str) -> Query:
    """The query of a seed: its own database, goals of the split, and a reference solution that has been executed."""
    rng = random.Random(f"query/{split}/{tier}/{seed}")
    count = rng.choice(TIERS[tier].goals)
    while True:
        name = f"{split}/{tier}/{seed}/{rng.randrange(10**6)}"
        goals = _draw_goals(rng, split, count, make_database(name))
        query = _build_query(split, tier, name, goals, rng) if goals else None
        if query:
            return query


def _draw_goals(rng: random.Random, split: str, count: int, database: Database) -> list[Goal] | None:
    if split == ERRAND:
        return _require_distinct([_draw_goal(_draw_errand(rng), database, rng) for _ in range(count)])
    if count == 1:
        return [_draw_goal(rng.choice(list_compositions(split)), database, rng)]
    combination = rng.sample(list_compositions("train"), count)
    if draw_combination_split(combination) != split:
        return None
    return _require_distinct([_draw_goal(c, database, rng) for c in combination])


def _require_distinct(goals: list[Goal]) -> list[Goal] | None:
    return goals if len({g.start for g in goals}) == len(goals) else None


def _draw_errand(rng: random.Random) -> Composition:
    name = rng.choice(CONDITIONAL if rng.random() < CONDITIONAL_SHARE else PLAIN)
    return name, rng.choice([r for r, reference in REFERENCES.items() if reference.kind == ERRANDS[name].kind])


def _draw_goal(composition: Composition, database: Database, rng: random.Random) -> Goal:
    goal = Goal(composition, "", "")
    procedure, reference = goal.procedure, REFERENCES[composition[1]]
    starts = database.names() if reference.start == "name" else list(database.tables[reference.start])
    literals: dict[str, Sequence[str]] = {"city": CITIES, "currency": CURRENCIES}
    return Goal(composition, rng.choice(starts), rng.choice(literals[procedure.literal]) if procedure.literal else "")


def _build_query(split: str, tier: str, name: str, goals: list[Goal], rng: random.Random) -> Query | None:
    database, calls = make_database(name), list[ToolCall]()
    try:
        for goal in goals:
            goal.carry_out(record_calls(database, calls))
    except ToolFailure:  # one goal prevents another
        return None
    is_repeated = len({(c.name, *c.arguments.items()) for c in calls}) < len(calls)
    if is_repeated or len(calls) not in TIERS[tier].calls:
        return None
    instruction = rng.choice(_OPENINGS) + goals[0].phrase(rng)
    instruction += "".join(rng.choice(_JOINS) + goal.phrase(rng) for goal in goals[1:])
    return Query(
        query_id=f"desk-{name}".replace("/", "-"),
        split=split,
        environment="desk",
        instruction=instruction,
        tools=(*(TOOLS[t].schema for t in _choose_tools(calls, goals, rng)), FINISH_SCHEMA),
        reference=Reference(
            calls=tuple(calls),
            environment={
                "writes": sorted(map(list, database.journal)),
                "database": name,
                "goals": [[*g.composition, g.start, g.literal] for g in goals],
            },
        ),
        source="desk",
        tier=tier,
        max_steps=len(calls) + 1 + TIERS[tier].slack,
    )


def _choose_tools(calls: Sequence[ToolCall], goals: Sequence[Goal], rng: random.Random) -> list[str]:
    """Names of the tools of a query: the needed ones, both sides of every branch, and distractors; shuffled."""
    needed_tools = {c.name for c in calls}
    needed_tools |= {tool for goal in goals for tool in goal.procedure.tools}
    branch = {"locate": "track_parcel", "price": "convert", "restock": "restock"}
    needed_tools |= {branch[g.composition[0]] for g in goals if g.composition[0] in branch}
    for pair in ALTERNATIVES:
        if needed_tools & set(pair):
            needed_tools |= set(pair)
    other_tools = [t for t in TOOLS if t not in needed_tools]
    offered_tools = sorted(needed_tools) + rng.sample(other_tools, min(DISTRACTORS, len(other_tools)))
    rng.shuffle(offered_tools)
    return offered_tools


def find_goals(query: Query) -> list[Goal]:
    """The goals behind a query of the desk."""
    return [Goal((p, r), start, literal) for p, r, start, literal in query.reference.environment["goals"]]


def draw_desk_queries(config: Config) -> list[Query]:
    """Training, validation and held-out queries. Validation and held-out ones are the same for every seed of a run."""
    counts = {
        "train": (config.data.train_queries, f"run{config.seed}"),
        "validation": (config.data.validation_queries, "fixed"),
        "heldout": (config.data.heldout_queries, "fixed"),
    }
    queries = []
    for split, (count, seed) in counts.items():
        long = round(count * config.data.long_share)
        tiers = [LONG] * long + [SINGLE] * (count - long)
        queries += [draw_query(split, tier, f"{seed}.{number}") for number, tier in enumerate(tiers)]
    return queries


class _CallFailed(Exception):
    """A call of the expert failed, or it stopped before the goal was reached."""


class Expert:
    """One attempt at one query."""

    def __init__(self, query: Query, rng: random.Random, slips: float, shortcuts: float) -> None:
        self._query, self._rng, self._slips, self._shortcuts = query, rng, slips, shortcuts
        self._session = DeskSession(query)
        self._steps: list[Step] = []
        self._last: dict[str, str] = {}
        self._patience = 10**6

    def attempt(self) -> Trajectory:
        """The attempt as a recorded trajectory (text only)."""
        goals = find_goals(self._query)
        hurried_goal = self._rng.randrange(len(goals)) if self._rng.random() < self._shortcuts else -1
        for number, goal in enumerate(goals):
            self._pursue(goal, number == hurried_goal, len(goals))
        finish = ToolCall(FINISH, {"return_type": "give_answer", "final_answer": DONE})
        self._steps.append(Step(finish, StepStatus.FINISH, ""))
        return _make_trajectory(self._query, self._steps, DONE, self._session.solved(DONE))

    def _pursue(self, goal: Goal, hurried: bool, goals: int) -> None:
        if not hurried:
            goal.carry_out(self._call)
            return
        corner = self._rng.choice(("habit", "early", "forget") if goals > 1 else ("habit", "early"))
        if corner == "forget":
            return
        try:
            if corner == "habit":
                goal.take_shortcut(self._call)
            else:
                self._patience = self._rng.randrange(1, 3)
                goal.carry_out(self._call)
        except _CallFailed:
            if self._last:
                self._execute(ToolCall("report", {"value": self._rng.choice(list(self._last.values()))}))
        finally:
            self._patience = 10**6

    def _call(self, name: str, /, **arguments: str | int) -> dict[str, str]:
        if self._patience == 0:
            raise _CallFailed
        self._patience -= 1
        if self._rng.random() < self._slips:
            self._make_useless_call(list(arguments.values()))
        result = self._execute(ToolCall(name, arguments))
        if "error" in result and name != "report":
            raise _CallFailed
        return result

    def _make_useless_call(self, arguments: Sequence[str | int]) -> None:
        """Make a useless call: an offered tool that only reads, with any value seen so far."""
        offered_names = [t["function"]["name"] for t in self._query.tools]
        name = self._rng.choice([t for t in offered_names if t in TOOLS and not TOOLS[t].writes] or ["get_order"])
        pool = [str(v) for v in arguments] + list(self._last.values())
        parameters = TOOLS[name].schema["function"]["parameters"]["required"]
        self._execute(ToolCall(name, {p: self._rng.choice(pool) for p in parameters}))

    def _execute(self, call: ToolCall) -> dict[str, str]:
        result = self._session.call(call)
        self._steps.append(Step(call, result.status, result.observation))
        values: dict[str, Any] = json.loads(result.observation)
        self._last = {k: str(v) for k, v in values.items()}
        return self._last


def _make_trajectory(query: Query, steps: Sequence[Step], answer: str, solved: float) -> Trajectory:
    return Trajectory(
        trajectory_id=f"expert-{query.query_id}",
        query_id=query.query_id,
        environment=query.environment,
        tier=query.tier,
        policy="expert",
        round=-1,
        sample=0,
        temperature=0.0,
        messages=write_conversation(query.instruction, steps),
        input_ids=np.zeros(0, dtype=np.int32),
        spans=(),
        logprobs=np.zeros(0, dtype=np.float32),
        steps=tuple(steps),
        stop_reason=StopReason.FINISHED,
        final_answer=answer,
        solved=solved,
        seconds=0.0,
    )


def write_conversation(instruction: str, steps: Sequence[Step]) -> list[Message]:
    """The OpenAI messages of an instruction and the steps that followed."""
    messages: list[Message] = [{"role": "user", "content": instruction}]
    for step in steps:
        if step.call is None:
            raise ValueError("a demonstration cannot have a step without a call")
        messages.append(make_call_message(step.call))
        if step.status is not StepStatus.FINISH:
            messages.append(make_tool_message(step.call.name, step.observation))
    return messages


def make_desk_demonstrations(config: Config, queries: Sequence[Query]) -> list[Trajectory]:
    """Attempts of the expert at training queries in random order, as many as the warm start takes."""
    train = [q for q in queries if q.split == "train"]
    rng = random.Random(f"expert/{config.seed}")
    drawn_queries = rng.sample(train, min(len(train), config.warm_start.demonstrations))
    return [Expert(q, rng, config.warm_start.slips, config.warm_start.shortcuts).attempt() for q in drawn_queries]
