"""Which row of the KV cache belongs to which episode, what it holds, and what must be computed for a next turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from steptool.rollout.episode import Episode

_SHARED = 128
"""Tokens that two sequences must begin with together before one takes over what was computed for the other."""


class Copy(NamedTuple):
    """Keys and values to take over: the first `length` tokens of one row into another."""

    source: int
    row: int
    length: int


class Fill(NamedTuple):
    """Tokens to compute in a row; those before `start` are there already."""

    row: int
    start: int
    ids: Sequence[int]


@dataclass
class Stage:
    """Copies, and then rows to fill side by side."""

    copies: list[Copy] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)


class Rows:
    """The rows of one run. A row keeps its tokens when its episode ends: the next one may begin alike."""

    def __init__(self, count: int) -> None:
        self._episodes: list[Episode | None] = [None] * count
        self._ids: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * count
        """The tokens whose keys and values each row holds."""

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def in_use(self) -> list[int]:
        """The rows that belong to an episode."""
        return [row for row, episode in enumerate(self._episodes) if episode]

    def row_of(self, episode: Episode) -> int:
        """The row of an episode. Raises ValueError if it has none."""
        return self._episodes.index(episode)

    def episode_of(self, row: int) -> Episode:
        """The episode of a row in use."""
        episode = self._episodes[row]
        assert episode is not None
        return episode

    def take(self, episode: Episode) -> int:
        """Give the first free row to an episode."""
        row = self._episodes.index(None)
        self._episodes[row] = episode
        return row

    def release(self, episode: Episode) -> None:
        """Free the episode's row."""
        self._episodes[self.row_of(episode)] = None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; row rows[i] becomes row i."""
        self._episodes, self._ids = [self._episodes[row] for row in rows], [self._ids[row] for row in rows]

    def append(self, row: int, ids: Sequence[int]) -> None:
        """Note sampled tokens whose keys and values a row holds as well."""
        self._ids[row] = np.concatenate([self._ids[row], np.asarray(ids, np.int64)])

    def plan(self, prompts: Sequence[tuple[Episode, Sequence[int], bool]]) -> list[Stage]:
        """How to put the prompts of episodes into their rows: (episode, tokens, whether it is the first prompt).

        An episode that begins takes over what another row holds, or will hold after the first stage, of the tokens that
        both begin with. So the prompts of many episodes with the same tools are computed once.
        """
        first, second = Stage(), Stage()
        beginning = {self.row_of(episode) for episode, _, begins in prompts if begins}
        sources = {_key(self._ids[row]): row for row in self.in_use if row not in beginning}
        for episode, prompt, begins in prompts:
            row, ids = self.row_of(episode), np.asarray(prompt, np.int64)
            key, stage, start = _key(ids), first, 0
            if not begins or (key and key == _key(self._ids[row])):
                start = _common(self._ids[row], ids)
            elif key and key in sources:
                source = sources[key]
                stage = second if any(fill.row == source for fill in first.fills) else first
                start = _common(self._ids[source], ids)
                stage.copies.append(Copy(source, row, start))
            start = min(start, len(ids) - 1)
            self._ids[row] = ids
            stage.fills.append(Fill(row, start, prompt[start:]))
            if begins:
                sources.setdefault(key, row)
        return [stage for stage in (first, second) if stage.fills]


def _key(ids: npt.NDArray[np.int64]) -> bytes:
    """What sequences have in common that share a prefix; empty for one that is too short to share."""
    return ids[:_SHARED].tobytes() if len(ids) >= _SHARED else b""


def _common(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    """Number of tokens with which both begin."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
