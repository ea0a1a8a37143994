"""The desk as an environment: its database, its tools, and sessions.

Each task has a small database, made from a seed. The tools have schemas and change the database. A session works on
its own copy of the query's database.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from steptool.chat.messages import annotate_tool
from steptool.environments.base import Environment, Session, ToolResult
from steptool.environments.schema import check_arguments
from steptool.records import Query, StepStatus, ToolCall, ToolSchema

_FIRST = "mira juan aiko omar lena ravi nora ivan zoe hugo tara emil sana luca yuki abel"
_LAST = "chen diaz okoro patel novak silva berg moreau tanaka weiss costa mensah kaur lund vega quinn"
_CITIES = "oslo lima cairo paris tokyo delhi rome quito seoul accra hanoi vienna dublin athens boston havana"
NAMES = tuple(f"{first} {last}" for first in _FIRST.split() for last in _LAST.split())
CITIES = tuple(_CITIES.split())
CURRENCIES = ("eur", "gbp", "inr", "jpy")
IDS_PER_KIND = 40
KINDS = {
    "user": "usr",
    "order": "ord",
    "product": "prd",
    "parcel": "pcl",
    "event": "evt",
    "ticket": "tck",
    "flight": "flt",
    "refund": "ref",
    "return": "ret",
    "supply": "sup",
    "booking": "bkg",
    "place": "wtl",
    "escalation": "esc",
    "agent": "agt",
}
Record = dict[str, str | int]


@dataclass
class Database:
    """Tables by kind and id. What a write returns is drawn beforehand, so that a database depends on its seed alone."""

    tables: dict[str, dict[str, Record]]
    temperatures: dict[str, int]
    rates: dict[tuple[str, str], int]
    """Exchange rate in percent, by (currency of the product, target currency)."""
    receipts: dict[tuple[str, str], str]
    """Id that a write returns, by (kind of receipt, id written to)."""
    journal: list[tuple[str, str]] = field(default_factory=list)
    """Writes so far: (tool, id)."""

    def names(self) -> list[str]:
        """Names of the users."""
        return [str(u["name"]) for u in self.tables["user"].values()]


def make_database(seed: str) -> Database:
    """The database of a seed."""
    rng = random.Random(f"desk/{seed}")

    def ids(kind: str, count: int) -> list[str]:
        return [f"{KINDS[kind]}_{i:02d}" for i in rng.sample(range(IDS_PER_KIND), count)]

    users, orders, products, parcels = (ids(k, 4) for k in ("user", "order", "product", "parcel"))
    events, tickets, flights = ids("event", 3), ids("ticket", 4), ids("flight", 4)
    item = rng.sample(products, 4)
    tables: dict[str, dict[str, Record]] = {
        "user": {
            u: {"name": n, "city": rng.choice(CITIES), "order_id": o}
            for u, n, o in zip(users, rng.sample(NAMES, 4), orders, strict=True)
        },
        "order": {
            o: {
                "status": rng.choice(("pending", "shipped")),
                "product_id": p,
                "parcel_id": c,
                "total": rng.randrange(10, 100),
            }
            for o, p, c in zip(orders, item, parcels, strict=True)
        },
        "product": {
            p: {
                "price": rng.randrange(10, 100),
                "currency": rng.choice(CURRENCIES),
                "stock": rng.choice(("low", "high")),
            }
            for p in products
        },
        "parcel": {p: {"city": rng.choice(CITIES)} for p in parcels},
        "event": {e: {"host_id": u} for e, u in zip(events, rng.sample(users, 3), strict=True)},
        "ticket": {
            t: {"severity": rng.choice(("minor", "major")), "user_id": u, "order_id": o}
            for t, u, o in zip(tickets, rng.sample(users, 4), rng.sample(orders, 4), strict=True)
        },
        "flight": {f: {"seats": rng.choice(("free", "full"))} for f in flights},
    }
    receipt_targets = {
        "refund": orders,
        "return": orders,
        "supply": products,
        "booking": flights,
        "place": flights,
        "escalation": tickets,
        "agent": tickets,
    }
    return Database(
        tables,
        {c: rng.randrange(10, 40) for c in CITIES},
        {(a, b): rng.randrange(10, 100) for a in CURRENCIES for b in CURRENCIES},
        {(k, key): i for k, keys in receipt_targets.items() for key, i in zip(keys, ids(k, len(keys)), strict=True)},
    )


def find_flight(database: Database, origin: str, destination: str) -> str:
    """The flight that serves a pair of cities."""
    flights = list(database.tables["flight"])
    return flights[(CITIES.index(origin) * len(CITIES) + CITIES.index(destination)) % len(flights)]


class ToolFailure(Exception):
    """A call that the desk refuses; its text is the observation."""


def _find_user(db: Database, name: str) -> Record:
    for user, record in db.tables["user"].items():
        if record["name"] == name:
            return {"user_id": user}
    raise ToolFailure("no such user")


def _get_profile(db: Database, user_id: str) -> Record:
    return {"city": _get(db, "user", user_id)["city"]}


def _last_order(db: Database, user_id: str) -> Record:
    return {"order_id": _get(db, "user", user_id)["order_id"]}


def _get_order(db: Database, order_id: str) -> Record:
    return dict(_get(db, "order", order_id))


def _track_parcel(db: Database, parcel_id: str) -> Record:
    return dict(_get(db, "parcel", parcel_id))


def _get_product(db: Database, product_id: str) -> Record:
    return dict(_get(db, "product", product_id))


def _convert(db: Database, amount: int, currency: str, target: str) -> Record:
    if currency == target:
        raise ToolFailure("same currency")
    return {"amount": (amount * db.rates[currency, target]) % 90 + 10}


def _get_weather(db: Database, city: str) -> Record:
    return {"temperature": db.temperatures[city]}


def _get_event(db: Database, event_id: str) -> Record:
    return dict(_get(db, "event", event_id))


def _get_ticket(db: Database, ticket_id: str) -> Record:
    return dict(_get(db, "ticket", ticket_id))


def _find_flight(db: Database, origin: str, destination: str) -> Record:
    if origin == destination:
        raise ToolFailure("same city")
    flight = find_flight(db, origin, destination)
    return {"flight_id": flight, **db.tables["flight"][flight]}


def _cancel_order(db: Database, order_id: str) -> Record:
    order = _get(db, "order", order_id)
    if order["status"] != "pending":
        raise ToolFailure(f"already {order['status']}")
    order["status"] = "cancelled"
    return _write(db, "cancel_order", order_id, "refund")


def _open_return(db: Database, order_id: str) -> Record:
    order = _get(db, "order", order_id)
    if order["status"] != "shipped":
        raise ToolFailure("not shipped")
    order["status"] = "returned"
    return _write(db, "open_return", order_id, "return")


def _restock(db: Database, product_id: str) -> Record:
    _get(db, "product", product_id)["stock"] = "high"
    return _write(db, "restock", product_id, "supply")


def _book_flight(db: Database, flight_id: str) -> Record:
    if _get(db, "flight", flight_id)["seats"] != "free":
        raise ToolFailure("flight full")
    return _write(db, "book_flight", flight_id, "booking")


def _join_waitlist(db: Database, flight_id: str) -> Record:
    _get(db, "flight", flight_id)
    return _write(db, "join_waitlist", flight_id, "place")


def _escalate(db: Database, ticket_id: str) -> Record:
    _get(db, "ticket", ticket_id)
    return _write(db, "escalate", ticket_id, "escalation")


def _assign_agent(db: Database, ticket_id: str) -> Record:
    _get(db, "ticket", ticket_id)
    return _write(db, "assign_agent", ticket_id, "agent")


def _report(db: Database, value: str) -> Record:
    if ("report", value) in db.journal:
        raise ToolFailure("already reported")
    db.journal.append(("report", value))
    return {"report": "received"}


def _get(db: Database, kind: str, key: str) -> Record:
    record = db.tables[kind].get(key)
    if record is None:
        raise ToolFailure(f"no such {kind}")
    return record


def _write(db: Database, tool: str, key: str, receipt: str) -> Record:
    if (tool, key) in db.journal:
        raise ToolFailure("already done")
    db.journal.append((tool, key))
    return {f"{receipt}_id": db.receipts[receipt, key]}


@dataclass(frozen=True)
class Tool:
    """A function of the desk and its schema."""

    run: Callable[..., Record]
    schema: ToolSchema
    writes: bool


def _describe_parameter(name: str) -> dict[str, Any]:
    if name.endswith("_id"):
        kind = name.removesuffix("_id")
        return {"type": "string", "pattern": rf"^{KINDS[kind]}_\d{{2}}$", "description": f"Id of the {kind}"}
    if name in ("city", "origin", "destination"):
        return {"type": "string", "enum": list(CITIES), "description": "City in lower case"}
    if name in ("currency", "target"):
        return {"type": "string", "enum": list(CURRENCIES), "description": "Currency code in lower case"}
    if name == "amount":
        return {"type": "integer", "minimum": 0, "description": "Amount in whole units"}
    if name == "value":
        return {"type": "string", "description": "What the user asked for, or the id of what was done"}
    return {"type": "string", "description": "Full name in lower case"}


def _make_tool(run: Callable[..., Record], description: str, parameters: str, writes: bool = False) -> tuple[str, Tool]:
    name, names = run.__name__.removeprefix("_"), parameters.split()
    schema = {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {n: _describe_parameter(n) for n in names},
                "required": names,
                "additionalProperties": False,
            },
        },
    }
    return name, Tool(run, annotate_tool(schema, read_only=not writes), writes)


TOOLS: dict[str, Tool] = dict(
    (
        _make_tool(_find_user, "Find a user by full name", "name"),
        _make_tool(_get_profile, "Home city of a user", "user_id"),
        _make_tool(_last_order, "Most recent order of a user", "user_id"),
        _make_tool(_get_order, "Status, product, parcel and total of an order", "order_id"),
        _make_tool(_track_parcel, "City where a parcel is now", "parcel_id"),
        _make_tool(_get_product, "Price, currency and stock of a product", "product_id"),
        _make_tool(_convert, "Convert an amount of money", "amount currency target"),
        _make_tool(_get_weather, "Temperature in a city", "city"),
        _make_tool(_get_event, "Host of an event", "event_id"),
        _make_tool(_get_ticket, "Severity, customer and order of a support ticket", "ticket_id"),
        _make_tool(_find_flight, "Flight between two cities and whether it has seats", "origin destination"),
        _make_tool(_cancel_order, "Cancel an order that has not shipped; opens a refund", "order_id", writes=True),
        _make_tool(_open_return, "Open a return for an order that has shipped", "order_id", writes=True),
        _make_tool(_restock, "Order new stock of a product", "product_id", writes=True),
        _make_tool(_book_flight, "Book a seat on a flight", "flight_id", writes=True),
        _make_tool(_join_waitlist, "Join the waiting list of a flight", "flight_id", writes=True),
        _make_tool(_escalate, "Escalate a support ticket", "ticket_id", writes=True),
        _make_tool(_assign_agent, "Assign an agent to a support ticket", "ticket_id", writes=True),
        _make_tool(_report, "Tell the user the outcome of one request", "value", writes=True),
    )
)
ALTERNATIVES = (
    ("cancel_order", "open_return"),
    ("book_flight", "join_waitlist"),
    ("escalate", "assign_agent"),
)
"""Pairs of which a procedure needs one, depending on what it observes; both are offered."""


class DeskSession(Session):
    """One episode of one query."""

    def __init__(self, query: Query) -> None:
        self._reference = query.reference
        self.database = make_database(str(query.reference.environment["database"]))

    def call(self, call: ToolCall) -> ToolResult:
        """Check the arguments against the tool's schema and execute the call."""
        tool = TOOLS.get(call.name)
        if tool is None:
            return ToolResult.failure(StepStatus.UNKNOWN_TOOL, "no such tool")
        problem = check_arguments(tool.schema["function"]["parameters"], call.arguments)
        if problem:
            return ToolResult.failure(StepStatus.INVALID_ARGUMENTS, "bad arguments")
        try:
            return ToolResult(StepStatus.OK, json.dumps(tool.run(self.database, **call.arguments)))
        except ToolFailure as failure:
            return ToolResult.failure(StepStatus.TOOL_ERROR, str(failure))

    def state_digest(self) -> str:
        """Of the tables and of what was written, in whatever order: calls answer by these alone."""
        state = [self.database.tables, sorted(self.database.journal)]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

    def solved(self, final_answer: str | None) -> float:
        """1 if the episode ended with an answer, and exactly the right writes and reports were made."""
        writes = sorted(map(list, self.database.journal))
        return float(final_answer is not None and writes == self._reference.environment["writes"])


class DeskEnvironment(Environment):
    """The desk as an environment."""

    name = "desk"

    def reset(self, query: Query) -> DeskSession:
        """A session on a fresh copy of the query's database."""
        return DeskSession(query)

    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of all tools of the desk."""
        return [tool.schema for tool in TOOLS.values()]
