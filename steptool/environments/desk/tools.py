"""The tools of the desk: their schemas and what they do to a database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steptool.chat.calls import annotate_tool
from steptool.environments.desk.database import CITIES, CURRENCIES, KINDS, Database, Record, flight_between
from steptool.records import ToolSchema


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
    flight = flight_between(db, origin, destination)
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


def _parameter(name: str) -> dict[str, Any]:
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


def _tool(run: Callable[..., Record], description: str, parameters: str, writes: bool = False) -> tuple[str, Tool]:
    name, names = run.__name__.removeprefix("_"), parameters.split()
    schema = {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {n: _parameter(n) for n in names},
                "required": names,
                "additionalProperties": False,
            },
        },
    }
    return name, Tool(run, annotate_tool(schema, read_only=not writes), writes)


TOOLS: dict[str, Tool] = dict(
    (
        _tool(_find_user, "Find a user by full name", "name"),
        _tool(_get_profile, "Home city of a user", "user_id"),
        _tool(_last_order, "Most recent order of a user", "user_id"),
        _tool(_get_order, "Status, product, parcel and total of an order", "order_id"),
        _tool(_track_parcel, "City where a parcel is now", "parcel_id"),
        _tool(_get_product, "Price, currency and stock of a product", "product_id"),
        _tool(_convert, "Convert an amount of money", "amount currency target"),
        _tool(_get_weather, "Temperature in a city", "city"),
        _tool(_get_event, "Host of an event", "event_id"),
        _tool(_get_ticket, "Severity, customer and order of a support ticket", "ticket_id"),
        _tool(_find_flight, "Flight between two cities and whether it has seats", "origin destination"),
        _tool(_cancel_order, "Cancel an order that has not shipped; opens a refund", "order_id", writes=True),
        _tool(_open_return, "Open a return for an order that has shipped", "order_id", writes=True),
        _tool(_restock, "Order new stock of a product", "product_id", writes=True),
        _tool(_book_flight, "Book a seat on a flight", "flight_id", writes=True),
        _tool(_join_waitlist, "Join the waiting list of a flight", "flight_id", writes=True),
        _tool(_escalate, "Escalate a support ticket", "ticket_id", writes=True),
        _tool(_assign_agent, "Assign an agent to a support ticket", "ticket_id", writes=True),
        _tool(_report, "Tell the user the outcome of one request", "value", writes=True),
    )
)
ALTERNATIVES = (
    ("cancel_order", "open_return"),
    ("book_flight", "join_waitlist"),
    ("escalate", "assign_agent"),
)
"""Pairs of which a procedure needs one, depending on what it observes; both are offered."""
