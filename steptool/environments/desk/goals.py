"""What users can ask of the desk: procedures applied to references, and errands.

A reference leads from something named in the query to an entity ("the last order of mira chen"); a procedure does
something with the entity and yields the answer ("cancel ..."), branching on what it observes. Their pairs are the
compositions by which tasks are split: no composition of the held-out tasks occurs in training.

An errand is a request whose wording says what to do. The base model is pretrained on errands. They stand for the
general skill that a model from a hub brings: it reads schemas, finds entities by reference, copies ids from call to
call and reports values. What "cancel" or "handle" means at the desk is not part of that skill.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

Call = Callable[..., dict[str, str]]
"""Executes a tool by name with keyword arguments and returns its result with values as text."""


@dataclass(frozen=True)
class EntityReference:
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
    """Tools to offer besides the needed ones, so that the offered tools do not reveal which branch to take."""


REFERENCES = {
    "user.name": EntityReference(
        "user", "name", ("{x}", "user {x}", "our customer {x}"), lambda call, x: call("find_user", name=x)["user_id"]
    ),
    "user.host": EntityReference(
        "user",
        "event",
        ("the host of {x}", "whoever runs {x}"),
        lambda call, x: call("get_event", event_id=x)["host_id"],
    ),
    "user.ticket": EntityReference(
        "user",
        "ticket",
        ("the person behind {x}", "who wrote {x}"),
        lambda call, x: call("get_ticket", ticket_id=x)["user_id"],
    ),
    "order.id": EntityReference("order", "order", ("{x}", "order {x}"), lambda call, x: x),
    "order.last": EntityReference(
        "order",
        "name",
        ("the last order of {x}", "the latest purchase of {x}"),
        lambda call, x: call("last_order", user_id=call("find_user", name=x)["user_id"])["order_id"],
    ),
    "order.host": EntityReference(
        "order",
        "event",
        ("the last order of the host of {x}", "the latest purchase of whoever runs {x}"),
        lambda call, x: call("last_order", user_id=call("get_event", event_id=x)["host_id"])["order_id"],
    ),
    "order.ticket": EntityReference(
        "order",
        "ticket",
        ("the order in {x}", "the order that {x} is about"),
        lambda call, x: call("get_ticket", ticket_id=x)["order_id"],
    ),
    "product.id": EntityReference("product", "product", ("{x}", "product {x}"), lambda call, x: x),
    "product.order": EntityReference(
        "product",
        "order",
        ("the item in {x}", "what was bought in {x}"),
        lambda call, x: call("get_order", order_id=x)["product_id"],
    ),
    "product.ticket": EntityReference(
        "product",
        "ticket",
        ("the item that {x} is about", "the item in the order of {x}"),
        lambda call, x: call("get_order", order_id=call("get_ticket", ticket_id=x)["order_id"])["product_id"],
    ),
    "product.last": EntityReference(
        "product",
        "name",
        ("the item that {x} bought last", "the item in the last order of {x}"),
        lambda call, x: call(
            "get_order", order_id=call("last_order", user_id=call("find_user", name=x)["user_id"])["order_id"]
        )["product_id"],
    ),
    "ticket.id": EntityReference("ticket", "ticket", ("{x}", "ticket {x}"), lambda call, x: x),
}


def _cancel(call: Call, order: str, _: str) -> str:
    if call("get_order", order_id=order)["status"] == "pending":
        return call("cancel_order", order_id=order)["refund_id"]
    return call("open_return", order_id=order)["return_id"]


def _locate(call: Call, order: str, _: str) -> str:
    record = call("get_order", order_id=order)
    return call("track_parcel", parcel_id=record["parcel_id"])["city"] if record["status"] == "shipped" else "pending"


def _tell_price(call: Call, item: str, currency: str) -> str:
    record = call("get_product", product_id=item)
    if record["currency"] == currency:
        return record["price"]
    return call("convert", amount=int(record["price"]), currency=record["currency"], target=currency)["amount"]


def _order_if_sold_out(call: Call, item: str, _: str) -> str:
    return call("restock", product_id=item)["supply_id"] if _tell_stock(call, item) == "low" else "high"


def _tell_stock(call: Call, item: str) -> str:
    return call("get_product", product_id=item)["stock"]


def _book_travel(call: Call, user: str, city: str) -> str:
    flight = _find_flight(call, user, city)
    if flight["seats"] == "free":
        return call("book_flight", flight_id=flight["flight_id"])["booking_id"]
    return call("join_waitlist", flight_id=flight["flight_id"])["place_id"]


def _find_flight(call: Call, user: str, city: str) -> dict[str, str]:
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
        _tell_price,
        lambda call, x, _: call("get_product", product_id=x)["price"],
        "currency",
    ),
    "restock": Procedure(
        "product",
        ("make sure {r} is in stock", "check the stock of {r} and refill it"),
        _order_if_sold_out,
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
        _book_travel,
        lambda call, x, city: call("book_flight", flight_id=_find_flight(call, x, city)["flight_id"])["booking_id"],
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


Action = Callable[[Call, str, str], str]


@dataclass(frozen=True)
class _Order:
    """One thing to do with an entity: its wordings and how it is done."""

    phrases: tuple[str, ...]
    run: Action
    literal: str = ""


def _read(tool: str, argument: str, field: str) -> Action:
    return lambda call, x, _: call(tool, **{argument: x})[field]


def _track(call: Call, order: str, _: str) -> str:
    return call("track_parcel", parcel_id=call("get_order", order_id=order)["parcel_id"])["city"]


def _tell_parcel_weather(call: Call, order: str, _: str) -> str:
    return call("get_weather", city=_track(call, order, ""))["temperature"]


def _tell_item_price(call: Call, order: str, _: str) -> str:
    return call("get_product", product_id=call("get_order", order_id=order)["product_id"])["price"]


def _convert(call: Call, item: str, currency: str) -> str:
    record = call("get_product", product_id=item)
    return call("convert", amount=int(record["price"]), currency=record["currency"], target=currency)["amount"]


def _tell_author_city(call: Call, ticket: str, _: str) -> str:
    return call("get_profile", user_id=call("get_ticket", ticket_id=ticket)["user_id"])["city"]


_ORDERS: dict[str, dict[str, _Order]] = {
    "order": {
        "status": _Order(
            ("tell the status of {r}", "read out the status of {r}"), _read("get_order", "order_id", "status")
        ),
        "parcel": _Order(("name the parcel of {r}",), _read("get_order", "order_id", "parcel_id")),
        "item": _Order(("name the product of {r}",), _read("get_order", "order_id", "product_id")),
        "track": _Order(("track the parcel of {r}",), _track),
        "weather": _Order(("tell the temperature at the parcel of {r}",), _tell_parcel_weather),
        "item_price": _Order(("tell the price tag on the product of {r}",), _tell_item_price),
        "refund": _Order(("open a refund for {r}",), _read("cancel_order", "order_id", "refund_id")),
        "return": _Order(("open a return for {r}",), _read("open_return", "order_id", "return_id")),
    },
    "product": {
        "price": _Order(("tell the price tag of {r}",), _read("get_product", "product_id", "price")),
        "currency": _Order(("name the currency of {r}",), _read("get_product", "product_id", "currency")),
        "level": _Order(("tell the stock level of {r}",), _read("get_product", "product_id", "stock")),
        "supply": _Order(("order a supply of {r}",), _read("restock", "product_id", "supply_id")),
        "convert": _Order(("convert the price tag of {r} to {l}",), _convert, "currency"),
    },
    "user": {
        "home": _Order(("name the home city of {r}",), _read("get_profile", "user_id", "city")),
        "order": _Order(("name the last order of {r}",), _read("last_order", "user_id", "order_id")),
        "flight": _Order(
            ("name the flight to {l} for {r}",), lambda call, x, city: _find_flight(call, x, city)["flight_id"], "city"
        ),
        "seats": _Order(
            ("tell the seats on the flight to {l} for {r}",),
            lambda call, x, city: _find_flight(call, x, city)["seats"],
            "city",
        ),
        "book": _Order(
            ("book the flight to {l} for {r}",),
            lambda call, x, city: call("book_flight", flight_id=_find_flight(call, x, city)["flight_id"])["booking_id"],
            "city",
        ),
        "wait": _Order(
            ("join the waiting list of the flight to {l} for {r}",),
            lambda call, x, city: call("join_waitlist", flight_id=_find_flight(call, x, city)["flight_id"])["place_id"],
            "city",
        ),
    },
    "ticket": {
        "severity": _Order(("tell the severity of {r}",), _read("get_ticket", "ticket_id", "severity")),
        "author": _Order(("name the author of {r}",), _read("get_ticket", "ticket_id", "user_id")),
        "order": _Order(("name the order of {r}",), _read("get_ticket", "ticket_id", "order_id")),
        "author_city": _Order(("name the home city of the author of {r}",), _tell_author_city),
        "escalate": _Order(("escalate {r}",), _read("escalate", "ticket_id", "escalation_id")),
        "assign": _Order(("assign an agent to {r}",), _read("assign_agent", "ticket_id", "agent_id")),
    },
}
_CONDITIONS = {
    "order": ("get_order", "order_id", "status", ("pending", "shipped")),
    "product": ("get_product", "product_id", "stock", ("low", "high")),
    "ticket": ("get_ticket", "ticket_id", "severity", ("minor", "major")),
}
_EXCLUDED_PAIRS = {
    ("return", "refund"),
    ("refund", "return"),
    ("escalate", "assign"),
    ("assign", "escalate"),
    ("supply", "level"),
}
"""Pairs that would turn a conditional errand into a procedure of the desk, or its opposite. They are left out."""


def _remember(call: Call) -> Call:
    """The same function, which answers a repeated call from memory."""
    answers: dict[tuple[object, ...], dict[str, str]] = {}

    def recall(name: str, /, **arguments: str | int) -> dict[str, str]:
        key = (name, *arguments.items())
        if key not in answers:
            answers[key] = call(name, **arguments)
        return answers[key]

    return recall


def _make_conditional(kind: str, value: str, then: _Order, other: _Order) -> Procedure:
    tool, argument, field, _ = _CONDITIONS[kind]

    def run(call: Call, entity: str, literal: str) -> str:
        ask = _remember(call)
        holds = ask(tool, **{argument: entity})[field] == value
        return (then if holds else other).run(ask, entity, literal)

    wording = f"{then.phrases[0]} if it is {value}, otherwise {other.phrases[0].replace('{r}', 'it')}"
    return Procedure(kind, (wording,), run, run, then.literal or other.literal, _list_tools(then) + _list_tools(other))


def _list_tools(order: _Order) -> tuple[str, ...]:
    """Names of the tools that an order calls, from a run on made-up values."""
    names: list[str] = []

    def call(name: str, /, **_: str | int) -> dict[str, str]:
        names.append(name)
        return defaultdict(lambda: "0")

    order.run(call, "0", "0")
    return tuple(names)


def _make_errands() -> dict[str, Procedure]:
    errands = {}
    for kind, orders in _ORDERS.items():
        for name, order in orders.items():
            errands[f"{kind}:{name}"] = Procedure(kind, order.phrases, order.run, order.run, order.literal)
        if kind in _CONDITIONS:
            for value in _CONDITIONS[kind][3]:
                for a, then in orders.items():
                    for b, other in orders.items():
                        if a != b and (a, b) not in _EXCLUDED_PAIRS:
                            errands[f"{kind}:{value}:{a}:{b}"] = _make_conditional(kind, value, then, other)
    return errands


ERRANDS = _make_errands()
PLAIN = tuple(name for name in ERRANDS if name.count(":") == 1)
CONDITIONAL = tuple(name for name in ERRANDS if name.count(":") > 1)
