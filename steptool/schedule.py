"""Who does what in a round: which queries are rolled out, in which shard, from which seed.

Everything here is a pure function of the configuration's seed, so that a shard that is run again draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def round_items(items: Sequence[T], count: int, round: int, seed: int) -> list[T]:
    """The `count` items of a round.

    Rounds read on in one endless sequence: all items in a shuffled order, then all of them in another one, and so on.
    No item comes twice before every other came once. Raises ValueError where there are no items.
    """
    if not items:
        raise ValueError("there is nothing to draw a round from: expected at least one item")
    drawn: list[T] = []
    position = round * count
    while len(drawn) < count:
        epoch, offset = divmod(position + len(drawn), len(items))
        drawn += _shuffled(items, seed, epoch)[offset : offset + count - len(drawn)]
    return drawn


def shard_items(items: Sequence[T], shard: int, shards: int) -> list[T]:
    """Every `shards`-th item from `shard` on: each item is in one shard, sizes differ by 1 at most."""
    if not 0 <= shard < shards:
        raise ValueError(f"expected a shard from 0 to {shards - 1}, got {shard}")
    return list(items[shard::shards])


def derived_seed(seed: int, *path: int | str) -> int:
    """A seed in [0, 2^31) of its own for each path, such as (round, shard)."""
    return random.Random("/".join(map(str, (seed, *path)))).getrandbits(31)


def _shuffled(items: Sequence[T], seed: int, epoch: int) -> list[T]:
    return random.Random(derived_seed(seed, "epoch", epoch)).sample(items, len(items))
