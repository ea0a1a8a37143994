"""From token sequences with spans to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Packing:
    """How sequences lie end to end in one row."""

    position_ids_BL: Tensor
    """Starts again at 0 with each sequence."""
    bounds: Tensor
    """Where each sequence starts and the last one ends, int32."""
    longest: int


@dataclass(frozen=True)
class TokenBatch:
    """The sequences of one forward pass and where the model acts in them."""

    input_ids_BL: Tensor
    """Padded on the right with token 0, which no action token can see under causal attention; or packed in one row."""
    before_N: Tensor
    """Place of the token just before each action token, counted through the rows of `input_ids_BL`."""
    targets_N: Tensor
    """The action tokens, sequence after sequence."""
    packing: Packing | None = None
    """None: one sequence per row."""

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on a device."""
        packing = self.packing and replace(
            self.packing,
            position_ids_BL=self.packing.position_ids_BL.to(device),
            bounds=self.packing.bounds.to(device),
        )
        return TokenBatch(self.input_ids_BL.to(device), self.before_N.to(device), self.targets_N.to(device), packing)


def action_places(row: Spanned) -> Indices:
    """Places of the action tokens in a sequence. Raises ValueError for spans that cannot be."""
    length, last = len(row.input_ids), 1  # the first token has nothing before it to be predicted from
    for start, end in row.spans:
        if not last <= start < end <= length:
            raise ValueError(
                f"span [{start}, {end}) of a sequence of {length} tokens: expected spans in order, not empty, "
                f"within [{last}, {length}]"
            )
        last = end
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, end) for start, end in row.spans)])


def collate(rows: Sequence[Spanned], packed: bool = False) -> TokenBatch:
    """The sequences as rows of one tensor, padded to the length of the longest; or packed end to end in one row."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    if packed:
        starts = np.cumsum(lengths) - lengths
        input_ids_BL = np.concatenate([np.asarray(row.input_ids, np.int64) for row in rows])[None]
    else:
        starts = np.arange(len(rows)) * lengths.max()
        input_ids_BL = np.zeros((len(rows), lengths.max()), dtype=np.int64)
        for ids_L, row in zip(input_ids_BL, rows, strict=True):
            ids_L[: len(row.input_ids)] = row.input_ids
    places_N = np.concatenate([start + action_places(row) for start, row in zip(starts, rows, strict=True)])
    return TokenBatch(
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(places_N - 1),
        torch.from_numpy(input_ids_BL.reshape(-1)[places_N]),
        _packing(lengths) if packed else None,
    )


def _packing(lengths: Indices) -> Packing:
    positions = np.concatenate([np.arange(length) for length in lengths])
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Packing(torch.from_numpy(positions[None]), torch.from_numpy(bounds), int(lengths.max()))
