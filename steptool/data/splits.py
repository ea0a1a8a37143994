"""Which queries are trained on, tuned on and held out: drawn by the text, and exact in number where that is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from steptool.config import DataConfig

SPLITS = ("train", "validation", "heldout")


def text_key(instruction: str) -> str:
    """What makes two instructions the same: the text without regard to white space."""
    return " ".join(instruction.split())


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(text.encode()).digest()[:16]


def split_sizes(data: DataConfig) -> dict[str, int]:
    """Queries kept at most, by split."""
    return dict(zip(SPLITS, (data.train_queries, data.validation_queries, data.heldout_queries), strict=True))


def draw_split(text: bytes, sizes: Mapping[str, int]) -> str:
    """The split of a text, by its digest, in the proportions of the sizes."""
    point = int.from_bytes(text[:8], "big") / 2**64 * sum(sizes.values())
    for split, size in sizes.items():
        point -= size
        if point < 0:
            return split
    return SPLITS[-1]


def target_sizes(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Exact numbers of tasks by split: the sizes, or where there are fewer tasks their proportions of the total.

    Each split gets the whole part of its share; what is left goes to the largest remainders, the first of equals first.
    """
    requested = sum(sizes.values())
    if total >= requested:
        return dict(sizes)
    targets = {split: total * size // requested for split, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda split: -(total * sizes[split] % requested))
    for split in by_remainder[: total - sum(targets.values())]:
        targets[split] += 1
    return targets


def missing_split(counts: Mapping[str, int], needed: int) -> str:
    """What is wrong where fewer than `needed` of the splits have a query; empty where enough of them have."""
    numbers = {split: counts.get(split, 0) for split in SPLITS}
    empty = [split for split, number in numbers.items() if not number]
    if len(SPLITS) - len(empty) >= needed:
        return ""
    return (
        f"the split '{empty[0]}' is empty (queries: {numbers}); give more tasks, give each task a split, or change the "
        "proportions data.train_queries : validation_queries : heldout_queries"
    )
