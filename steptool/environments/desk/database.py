"""One small database per task, made from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

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
    written = {
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
        {(k, key): i for k, keys in written.items() for key, i in zip(keys, ids(k, len(keys)), strict=True)},
    )


def flight_between(database: Database, origin: str, destination: str) -> str:
    """The flight that serves a pair of cities."""
    flights = list(database.tables["flight"])
    return flights[(CITIES.index(origin) * len(CITIES) + CITIES.index(destination)) % len(flights)]
