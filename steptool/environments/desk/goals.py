"""What users can ask of the desk: procedures applied to references, and how each is carried out.

A reference leads from something named in the query to an entity ("the last order of mira chen"); a procedure does
something with the entity and yields the answer ("cancel ..."), branching on what it observes. Their pairs are the
compositions by which tasks are split: no composition of the held-out tasks occurs in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

Call = Callable[..., dict[str, str]]
"""Executes a tool by name with keyword arguments and returns its result with values as text."""


@dataclass(frozen=True)
class Reference:
    """A way to name an entity in a query, and how to find the entity from it."""

    kind: str
    """Kind of the entity."""
    start: str
    """What the query names: "name" for a person's name, or the table of an id."""
    phrases: tuple[str, ...]
    resolve: Callable[[Call, str], str]


@dataclass(frozen=True)
class Procedure:
    """Something to do with an entity."""

    kind: str
    phrases: tuple[str, ...]
    run: Callable[[Call, str, str], str]
    """Carries it out correctly: (call, entity id, literal) -> answer."""
    shortcut: Callable[[Call, str, str], str]
    """Carries it out as people in a hurry do, without looking first."""
    literal: str = ""
    """Kind of the literal that the query names besides: "city", "currency" or none."""
    tools: tuple[str, ...] = ()
    """Tools to offer besides the needed ones, so that what is offered does not tell which branch to take."""


REFERENCES = {
    "user.name": Reference(
        "user", "name", ("{x}", "user {x}", "our customer {x}"), lambda call, x: call("find_user", name=x)["user_id"]
    ),
    "user.host": Reference(
        "user",
        "event",
        ("the host of {x}", "whoever runs {x}"),
        lambda call, x: call("get_event", event_id=x)["host_id"],
    ),
    "user.ticket": Reference(
        "user",
        "ticket",
        ("the person behind {x}", "who wrote {x}"),
        lambda call, x: call("get_ticket", ticket_id=x)["user_id"],
    ),
    "order.id": Reference("order", "order", ("{x}", "order {x}"), lambda call, x: x),
    "order.last": Reference(
        "order",
        "name",
        ("the last order of {x}", "the latest purchase of {x}"),
        lambda call, x: call("last_order", user_id=call("find_user", name=x)["user_id"])["order_id"],
    ),
    "order.host": Reference(
        "order",
        "event",
        ("the last order of the host of {x}", "the latest purchase of whoever runs {x}"),
        lambda call, x: call("last_order", user_id=call("get_event", event_id=x)["host_id"])["order_id"],
    ),
    "order.ticket": Reference(
        "order",
        "ticket",
        ("the order in {x}", "the order that {x} is about"),
        lambda call, x: call("get_ticket", ticket_id=x)["order_id"],
    ),
    "product.id": Reference("product", "product", ("{x}", "product {x}"), lambda call, x: x),
    "product.order": Reference(
        "product",
        "order",
        ("the item in {x}", "what was bought in {x}"),
        lambda call, x: call("get_order", order_id=x)["product_id"],
    ),
    "product.ticket": Reference(
        "product",
        "ticket",
        ("the item that {x} is about", "the item in the order of {x}"),
        lambda call, x: call("get_order", order_id=call("get_ticket", ticket_id=x)["order_id"])["product_id"],
    ),
    "product.last": Reference(
        "product",
        "name",
        ("the item that {x} bought last", "the item in the last order of {x}"),
        lambda call, x: call(
            "get_order", order_id=call("last_order", user_id=call("find_user", name=x)["user_id"])["order_id"]
        )["product_id"],
    ),
    "ticket.id": Reference("ticket", "ticket", ("{x}", "ticket {x}"), lambda call, x: x),
}


def _cancel(call: Call, order: str, _: str) -> str:
    if call("get_order", order_id=order)["status"] == "pending":
        return call("cancel_order", order_id=order)["refund_id"]
    return call("open_return", order_id=order)["return_id"]


def _locate(call: Call, order: str, _: str) -> str:
    record = call("get_order", order_id=order)
    return call("track_parcel", parcel_id=record["parcel_id"])["city"] if record["status"] == "shipped" else "pending"


def _price(call: Call, item: str, currency: str) -> str:
    record = call("get_product", product_id=item)
    if record["currency"] == currency:
        return record["price"]
    return call("convert", amount=int(record["price"]), currency=record["currency"], target=currency)["amount"]


def _restock(call: Call, item: str, _: str) -> str:
    return call("restock", product_id=item)["supply_id"] if _stock(call, item) == "low" else "high"


def _stock(call: Call, item: str) -> str:
    return call("get_product", product_id=item)["stock"]


def _travel(call: Call, user: str, city: str) -> str:
    flight = _flight(call, user, city)
    if flight["seats"] == "free":
        return call("book_flight", flight_id=flight["flight_id"])["booking_id"]
    return call("join_waitlist", flight_id=flight["flight_id"])["place_id"]


def _flight(call: Call, user: str, city: str) -> dict[str, str]:
    return call("find_flight", origin=call("get_profile", user_id=user)["city"], destination=city)


def _handle(call: Call, ticket: str, _: str) -> str:
    if call("get_ticket", ticket_id=ticket)["severity"] == "major":
        return call("escalate", ticket_id=ticket)["escalation_id"]
    return call("assign_agent", ticket_id=ticket)["agent_id"]


PROCEDURES = {
    "cancel": Procedure(
        "order",
        ("cancel {r}", "call off {r}", "undo {r}"),
        _cancel,
        lambda call, x, _: call("cancel_order", order_id=x)["refund_id"],
    ),
    "locate": Procedure(
        "order",
        ("locate {r}", "say where {r} is now", "find out how far {r} got"),
        _locate,
        lambda call, x, _: call("get_order", order_id=x)["status"],
    ),
    "total": Procedure(
        "order",
        ("give me the total of {r}", "say how much was paid for {r}"),
        lambda call, x, _: call("get_order", order_id=x)["total"],
        lambda call, x, _: call("get_order", order_id=x)["parcel_id"],
    ),
    "price": Procedure(
        "product",
        ("quote {r} in {l}", "give me the price of {r} in {l}", "say what {r} costs in {l}"),
        _price,
        lambda call, x, _: call("get_product", product_id=x)["price"],
        "currency",
    ),
    "restock": Procedure(
        "product",
        ("make sure {r} is in stock", "check the stock of {r} and refill it"),
        _restock,
        lambda call, x, _: call("restock", product_id=x)["supply_id"],
    ),
    "weather": Procedure(
        "user",
        ("say how warm it is at the home of {r}", "give me the temperature where {r} lives"),
        lambda call, x, _: call("get_weather", city=call("get_profile", user_id=x)["city"])["temperature"],
        lambda call, x, _: call("get_profile", user_id=x)["city"],
    ),
    "travel": Procedure(
        "user",
        ("get a seat to {l} for {r}", "book a trip to {l} for {r}"),
        _travel,
        lambda call, x, city: call("book_flight", flight_id=_flight(call, x, city)["flight_id"])["booking_id"],
        "city",
    ),
    "handle": Procedure(
        "ticket",
        ("handle {r}", "take care of {r}", "route {r}"),
        _handle,
        lambda call, x, _: call("assign_agent", ticket_id=x)["agent_id"],
    ),
}

Composition = tuple[str, str]
"""(procedure, reference)."""
COMPOSITIONS: tuple[Composition, ...] = tuple(
    (p, r) for p, r in product(PROCEDURES, REFERENCES) if PROCEDURES[p].kind == REFERENCES[r].kind
)
HELDOUT: frozenset[Composition] = frozenset(
    {
        ("cancel", "order.host"),
        ("locate", "order.ticket"),
        ("price", "product.last"),
        ("weather", "user.ticket"),
        ("travel", "user.host"),
    }
)
VALIDATION: frozenset[Composition] = frozenset(
    {("total", "order.ticket"), ("restock", "product.ticket"), ("locate", "order.host")}
)
