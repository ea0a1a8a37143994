"""From token sequences with spans to batches: which sequences are trained on together, and their padded tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that is not an action."""

Indices = npt.NDArray[np.int64]


class Spanned(Protocol):
    """Tokens of which those inside the spans [start, end) are the model's own: a Trajectory, an encoded example."""

    @property
    def input_ids(self) -> Any:
        """[L] token ids."""
        ...

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """[start, end) of each assistant step."""
        ...


def labels_of(row: Spanned) -> npt.NDArray[np.int64]:
    """[L]: the token itself inside the spans, IGNORED elsewhere. Raises ValueError for spans that cannot be."""
    ids = np.asarray(row.input_ids, dtype=np.int64)
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    last = 1  # the first token of a sequence has nothing before it to be predicted from
    for start, end in row.spans:
        if not last <= start < end <= len(ids):
            raise ValueError(
                f"span [{start}, {end}) of a sequence of {len(ids)} tokens: expected spans in order, not empty, "
                f"within [{last}, {len(ids)}]"
            )
        labels[start:end] = ids[start:end]
        last = end
    return labels


def collate(rows: Sequence[Spanned]) -> dict[str, Tensor]:
    """`input_ids` and `labels` [B, L], padded on the right (with token 0, which nothing can see)."""
    length = max(len(row.input_ids) for row in rows)
    input_ids = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.input_ids)] = row.input_ids
        labels[i, : len(row.input_ids)] = labels_of(row)
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


def updates_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps for one pass over `count` sequences."""
    return math.ceil(count / batch_size)


def mini_batches(count: int, batch_size: int, epochs: int, seed: int) -> list[Indices]:
    """Sequences of each optimizer step: `epochs` shuffled passes, cut into equal parts of at most `batch_size`."""
    rng = np.random.default_rng(seed)
    parts = updates_per_epoch(count, batch_size)
    return [part for _ in range(epochs) for part in np.array_split(rng.permutation(count), parts)]


def micro_batches(batch: Indices, lengths: Indices, size: int, slots: int) -> list[Indices]:
    """Cut a mini-batch into `slots` groups of similar length, of at most `size` where slots * size allows.

    Groups may be empty when the mini-batch has fewer sequences than slots.
    """
    if slots * size < len(batch):
        raise ValueError(f"{len(batch)} sequences do not fit into {slots} micro batches of {size}")
    return np.array_split(batch[np.argsort(lengths[batch], kind="stable")], slots)


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
