"""Errands: requests whose wording says what to do, on the tools of the desk. The base model is pretrained on them.

They stand for the general skill that a model from a hub brings: it reads schemas, finds entities by reference, copies
ids from call to call, reports values and follows conditions that are spelled out. What the desk expects of "cancel" or
"handle" is not among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from steptool.environments.desk.goals import Call, Procedure

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


def _parcel_weather(call: Call, order: str, _: str) -> str:
    return call("get_weather", city=_track(call, order, ""))["temperature"]


def _item_price(call: Call, order: str, _: str) -> str:
    return call("get_product", product_id=call("get_order", order_id=order)["product_id"])["price"]


def _convert(call: Call, item: str, currency: str) -> str:
    record = call("get_product", product_id=item)
    return call("convert", amount=int(record["price"]), currency=record["currency"], target=currency)["amount"]


def _flight(call: Call, user: str, city: str) -> dict[str, str]:
    return call("find_flight", origin=call("get_profile", user_id=user)["city"], destination=city)


def _author_city(call: Call, ticket: str, _: str) -> str:
    return call("get_profile", user_id=call("get_ticket", ticket_id=ticket)["user_id"])["city"]


_ORDERS: dict[str, dict[str, _Order]] = {
    "order": {
        "status": _Order(
            ("tell the status of {r}", "read out the status of {r}"), _read("get_order", "order_id", "status")
        ),
        "parcel": _Order(("name the parcel of {r}",), _read("get_order", "order_id", "parcel_id")),
        "item": _Order(("name the product of {r}",), _read("get_order", "order_id", "product_id")),
        "track": _Order(("track the parcel of {r}",), _track),
        "weather": _Order(("tell the temperature at the parcel of {r}",), _parcel_weather),
        "item_price": _Order(("tell the price tag on the product of {r}",), _item_price),
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
            ("name the flight to {l} for {r}",), lambda call, x, city: _flight(call, x, city)["flight_id"], "city"
        ),
        "seats": _Order(
            ("tell the seats on the flight to {l} for {r}",),
            lambda call, x, city: _flight(call, x, city)["seats"],
            "city",
        ),
        "book": _Order(
            ("book the flight to {l} for {r}",),
            lambda call, x, city: call("book_flight", flight_id=_flight(call, x, city)["flight_id"])["booking_id"],
            "city",
        ),
        "wait": _Order(
            ("join the waiting list of the flight to {l} for {r}",),
            lambda call, x, city: call("join_waitlist", flight_id=_flight(call, x, city)["flight_id"])["place_id"],
            "city",
        ),
    },
    "ticket": {
        "severity": _Order(("tell the severity of {r}",), _read("get_ticket", "ticket_id", "severity")),
        "author": _Order(("name the author of {r}",), _read("get_ticket", "ticket_id", "user_id")),
        "order": _Order(("name the order of {r}",), _read("get_ticket", "ticket_id", "order_id")),
        "author_city": _Order(("name the home city of the author of {r}",), _author_city),
        "escalate": _Order(("escalate {r}",), _read("escalate", "ticket_id", "escalation_id")),
        "assign": _Order(("assign an agent to {r}",), _read("assign_agent", "ticket_id", "agent_id")),
    },
}
_CONDITIONS = {
    "order": ("get_order", "order_id", "status", ("pending", "shipped")),
    "product": ("get_product", "product_id", "stock", ("low", "high")),
    "ticket": ("get_ticket", "ticket_id", "severity", ("minor", "major")),
}
_DESKS_OWN = {
    ("return", "refund"),
    ("refund", "return"),
    ("escalate", "assign"),
    ("assign", "escalate"),
    ("supply", "level"),
}
"""Conditional errands that would be procedures of the desk or their contrary."""


def _remember(call: Call) -> Call:
    """The function, answering from memory what it has been asked before."""
    answers: dict[tuple[object, ...], dict[str, str]] = {}

    def recall(name: str, /, **arguments: str | int) -> dict[str, str]:
        key = (name, *arguments.items())
        if key not in answers:
            answers[key] = call(name, **arguments)
        return answers[key]

    return recall


def _conditional(kind: str, value: str, then: _Order, other: _Order) -> Procedure:
    tool, argument, field, _ = _CONDITIONS[kind]

    def run(call: Call, entity: str, literal: str) -> str:
        ask = _remember(call)
        holds = ask(tool, **{argument: entity})[field] == value
        return (then if holds else other).run(ask, entity, literal)

    wording = f"{then.phrases[0]} if it is {value}, otherwise {other.phrases[0].replace('{r}', 'it')}"
    return Procedure(kind, (wording,), run, run, then.literal or other.literal, _tools_of(then) + _tools_of(other))


def _tools_of(order: _Order) -> tuple[str, ...]:
    """Names of the tools that an order calls, from a run on made-up values."""
    names: list[str] = []

    def call(name: str, /, **_: str | int) -> dict[str, str]:
        names.append(name)
        return defaultdict(lambda: "0")

    order.run(call, "0", "0")
    return tuple(names)


def _errands() -> dict[str, Procedure]:
    errands = {}
    for kind, orders in _ORDERS.items():
        for name, order in orders.items():
            errands[f"{kind}:{name}"] = Procedure(kind, order.phrases, order.run, order.run, order.literal)
        if kind in _CONDITIONS:
            for value in _CONDITIONS[kind][3]:
                for a, then in orders.items():
                    for b, other in orders.items():
                        if a != b and (a, b) not in _DESKS_OWN:
                            errands[f"{kind}:{value}:{a}:{b}"] = _conditional(kind, value, then, other)
    return errands


ERRANDS = _errands()
PLAIN = tuple(name for name in ERRANDS if name.count(":") == 1)
CONDITIONAL = tuple(name for name in ERRANDS if name.count(":") > 1)
