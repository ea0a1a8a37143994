"""Which sequences make an optimizer step, and which of them share a forward pass on which process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steptool.models.batch import Indices


def updates_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps for one pass over `count` sequences."""
    return math.ceil(count / batch_size)


def mini_batches(count: int, batch_size: int, epochs: int, seed: int) -> list[Indices]:
    """Sequences of each optimizer step: `epochs` shuffled passes, cut into equal parts of at most `batch_size`."""
    rng = np.random.default_rng(seed)
    parts = updates_per_epoch(count, batch_size)
    return [part for _ in range(epochs) for part in np.array_split(rng.permutation(count), parts)]


def grouped_batches(lengths: Indices, batch_size: int, steps: int, seed: int) -> list[Indices]:
    """Sequences of `steps` optimizer steps: shuffled passes, in batches of similar length and random order.

    Lengths are compared within windows of 8 batches, so that a batch is not the same in every pass.
    """
    rng = np.random.default_rng(seed)
    parts, window = updates_per_epoch(len(lengths), batch_size), 8 * batch_size
    batches: list[Indices] = []
    while len(batches) < steps:
        order = rng.permutation(len(lengths))
        windows = [order[i : i + window] for i in range(0, len(order), window)]
        by_length = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])
        groups = np.array_split(by_length, parts)
        batches += [groups[i] for i in rng.permutation(parts)]
    return batches[:steps]


@dataclass(frozen=True)
class PassLimit:
    """How much goes through the model in one forward pass on one process."""

    sequences: int
    """Sequences, at most; not looked at where the tokens are limited."""
    tokens: int = 0
    """Tokens, padding included, at most; a longer sequence goes alone. 0: no limit of tokens."""
    packed: bool = False
    """Whether sequences are packed end to end, so that there is no padding."""


def forward_passes(batch: Indices, lengths: Indices, limit: PassLimit, processes: int = 1) -> list[Indices]:
    """Cut a mini-batch into forward passes of sequences of similar length; process i takes every passes[i::processes].

    Some of them may be empty where there are fewer sequences than processes.
    """
    by_length = batch[np.argsort(lengths[batch], kind="stable")]
    if not limit.tokens:
        count = math.ceil(len(batch) / (limit.sequences * processes)) * processes
        return np.array_split(by_length, count)
    passes: list[list[int]] = []
    for row in by_length[::-1]:  # from the longest on, so that the first of a pass is its longest
        for rows in passes if limit.packed else passes[-1:]:
            tokens = lengths[rows].sum() + lengths[row] if limit.packed else lengths[rows[0]] * (len(rows) + 1)
            if tokens <= limit.tokens:
                rows.append(row)
                break
        else:
            passes.append([row])
    return [np.array(rows, dtype=np.int64) for rows in passes]


def share_passes(passes: list[Indices], index: int, count: int, *, together: bool) -> Iterator[tuple[Indices, bool]]:
    """The forward passes of process `index` of `count`, each with whether its result counts.

    `together`: processes that hold parts of one model need as many passes each, and one that lacks a pass repeats
    another, which does not count.
    """
    own = passes[index::count]
    yield from ((rows, True) for rows in own if len(rows))
    if together:
        spare = min(filter(len, passes), key=len)
        yield from [(spare, False)] * (math.ceil(len(passes) / count) - sum(map(bool, map(len, own))))


def packed_places(counts: Indices) -> list[Indices]:
    """Places of each sequence's action tokens among those of all sequences, packed end to end."""
    return np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
