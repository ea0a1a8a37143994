"""Which queries are trained on, tuned on and held out: by the text alone, so that it never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from steptool.config import DataConfig
from steptool.data.intake import IngestError, Ledger
from steptool.trajectory import Query

SPLITS = ("train", "validation", "heldout")


def text_key(instruction: str) -> str:
    """What makes two instructions the same: the text without regard to white space."""
    return " ".join(instruction.split())


def _limits(data: DataConfig) -> dict[str, int]:
    return dict(zip(SPLITS, (data.train_queries, data.validation_queries, data.heldout_queries), strict=True))


def with_splits(queries: Sequence[Query], data: DataConfig) -> list[Query]:
    """Queries that all have a split: the given one, or else one drawn by the hash of the text.

    The shares drawn are those of the configured numbers of queries. Equal texts get the same split; raises IngestError
    if the source gives them two.
    """
    given: dict[str, Query] = {}
    for query in queries:
        first = given.setdefault(text_key(query.instruction), query) if query.split else query
        if first.split != query.split:
            raise IngestError(
                f"the tasks '{first.query_id}' ({first.split}) and '{query.query_id}' ({query.split}) have the same "
                "instruction in two splits; what is held out must not be trained on"
            )
    splits = {text: query.split for text, query in given.items()}
    limits = _limits(data)
    return [
        replace(q, split=splits.get(key) or _drawn(key, limits)) for q in queries for key in [text_key(q.instruction)]
    ]


def _drawn(text: str, limits: dict[str, int]) -> str:
    point = int.from_bytes(_digest(text)[:8], "big") / 2**64 * sum(limits.values())
    for split, size in limits.items():
        point -= size
        if point < 0:
            return split
    return SPLITS[-1]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def limited(queries: Sequence[Query], recorded: Set[str], data: DataConfig, ledger: Ledger) -> list[Query]:
    """At most the configured number of queries of each split, in their order: those whose text has a recorded answer
    first, then a draw by the hash of the text."""
    kept: set[str] = set()
    for split, limit in _limits(data).items():
        keys = {q.query_id: text_key(q.instruction) for q in queries if q.split == split}
        ranked = sorted(keys, key=lambda i: (keys[i] not in recorded, _digest(f"draw {keys[i]}"), i))
        kept |= set(ranked[:limit])
        if len(ranked) > limit:
            ledger.count(f"queries dropped: more than data.{split}_queries", len(ranked) - limit)
    return [q for q in queries if q.query_id in kept]


def check_splits(queries: Iterable[Query], where: str, ledger: Ledger) -> None:
    """Raise IngestError if a split has no query."""
    listed = list(queries)
    counts = {split: sum(q.split == split for q in listed) for split in SPLITS}
    empty = [split for split, count in counts.items() if not count]
    if empty:
        refused = ledger.first_refusal()
        raise IngestError(
            f"{where}: the split '{empty[0]}' is empty (queries: {counts}); give more tasks, give each task a split, "
            "or change the proportions data.train_queries : validation_queries : heldout_queries"
            + (f". First record set aside: {refused}" if refused else "")
        )
