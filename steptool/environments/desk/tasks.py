"""Tasks of the desk: queries with one goal or several, drawn from seeds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from steptool.chat.calls import FINISH_SCHEMA
from steptool.config import Config
from steptool.environments.desk.database import CITIES, CURRENCIES, Database, make_database
from steptool.environments.desk.errands import CONDITIONAL, ERRANDS, PLAIN
from steptool.environments.desk.goals import (
    COMPOSITIONS,
    HELDOUT,
    PROCEDURES,
    REFERENCES,
    VALIDATION,
    Call,
    Composition,
    Procedure,
)
from steptool.environments.desk.tools import ALTERNATIVES, TOOLS, ToolFailure
from steptool.records import Query, Reference, ToolCall


@dataclass(frozen=True)
class Tier:
    """A group of queries of similar difficulty."""

    goals: tuple[int, ...]
    """Numbers of goals."""
    calls: range
    """Numbers of calls needed."""
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
"""Share of the conditional errands."""
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


def recording_call(database: Database, calls: list[ToolCall]) -> Call:
    """A function that executes tools on the database and appends each call to `calls`."""

    def call(name: str, /, **arguments: str | int) -> dict[str, str]:
        calls.append(ToolCall(name, arguments))
        return {k: str(v) for k, v in TOOLS[name].run(database, **arguments).items()}

    return call


def compositions(split: str) -> tuple[Composition, ...]:
    """Compositions of the single-goal queries of a split."""
    special = {"heldout": HELDOUT, "validation": VALIDATION}
    return tuple(
        c for c in COMPOSITIONS if (c in special[split] if split in special else c not in HELDOUT | VALIDATION)
    )


def combination_split(combination: Sequence[Composition]) -> str:
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
        return _apart([_draw_goal(_draw_errand(rng), database, rng) for _ in range(count)])
    if count == 1:
        return [_draw_goal(rng.choice(compositions(split)), database, rng)]
    combination = rng.sample(compositions("train"), count)
    if combination_split(combination) != split:
        return None
    return _apart([_draw_goal(c, database, rng) for c in combination])


def _apart(goals: list[Goal]) -> list[Goal] | None:
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
            goal.carry_out(recording_call(database, calls))
    except ToolFailure:  # one goal prevents another
        return None
    repeated = len({(c.name, *c.arguments.items()) for c in calls}) < len(calls)
    if repeated or len(calls) not in TIERS[tier].calls:
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
    needed = {c.name for c in calls}
    needed |= {tool for goal in goals for tool in goal.procedure.tools}
    branch = {"locate": "track_parcel", "price": "convert", "restock": "restock"}
    needed |= {branch[g.composition[0]] for g in goals if g.composition[0] in branch}
    for pair in ALTERNATIVES:
        if needed & set(pair):
            needed |= set(pair)
    others = [t for t in TOOLS if t not in needed]
    offered = sorted(needed) + rng.sample(others, min(DISTRACTORS, len(others)))
    rng.shuffle(offered)
    return offered


def goals_of(query: Query) -> list[Goal]:
    """The goals behind a query of the desk."""
    return [Goal((p, r), start, literal) for p, r, start, literal in query.reference.environment["goals"]]


def desk_queries(config: Config) -> list[Query]:
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
