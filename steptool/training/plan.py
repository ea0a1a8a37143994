"""Which sequences make an optimizer step, and which of them share a forward pass on which process."""

from __future__ import annotations

import math

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
        cut = np.array_split(by_length, parts)
        batches += [cut[i] for i in rng.permutation(parts)]
    return batches[:steps]


def micro_batches(batch: Indices, lengths: Indices, size: int, processes: int = 1) -> list[Indices]:
    """Cut a mini-batch into forward passes of at most `size` sequences of similar length.

    Their number is a multiple of `processes`, so a mini-batch with few sequences may leave some of them empty.
    """
    passes = math.ceil(len(batch) / (size * processes)) * processes
    return np.array_split(batch[np.argsort(lengths[batch], kind="stable")], passes)


def packed_places(counts: Indices) -> list[Indices]:
    """Places of each sequence's action tokens among those of all sequences, packed end to end."""
    return np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
