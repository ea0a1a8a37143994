"""The protocol of a policy: it receives the episodes that wait for a turn and hands back turns as they end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from steptool.config import SearchConfig
from steptool.rollout.episode import Episode
from steptool.rollout.turns import Decoding, Refusal, Turn

EndedTurn = tuple[Episode, Turn | Refusal]
"""An episode that waited for a turn, and the turn; or why it gets none."""


class Policy(Protocol):
    """Makes turns for many episodes side by side. The runner calls it from one thread.

    How turns are made is the policy's business: one batch on a GPU with a cache of its own, an engine that batches
    continuously, requests over HTTP, or recorded calls. For each run the runner calls `begin` once, then `submit` and
    `poll` in turn, and `release` for each episode that has ended.
    """

    name: str
    """Name in trajectories and results."""
    capacity: int
    """Episodes that are played side by side, at most."""
    max_steps: int | None
    """Turns of an episode where its query sets no limit; None: episodes end by themselves."""
    search: SearchConfig | None
    """How episodes go back and try again; None: they are chains."""
    patience: float
    """Seconds that the runner gives the environment to answer the last turns before it asks for further ones. A policy
    that decodes in batches has fuller ones if it waits a little, and with quick tools the same ones in every run."""

    def temperature(self, decoding: Decoding) -> float:
        """The temperature that trajectories carry."""
        ...

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> Sequence[Episode]:
        """Take in a run's episodes and return them in the order in which they should start.

        Raises ValueError, before anything is played, for an episode that cannot be.
        """
        ...

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Take in episodes that wait for their next turn."""
        ...

    def poll(self, until: Collection[Future[Any]]) -> Sequence[EndedTurn]:
        """Wait until a turn has ended and return all that have; or none, once one of the futures `until` is done.

        An environment has answered then, and the runner continues with it.
        """
        ...

    def release(self, episode: Episode) -> None:
        """Forget an episode: it waits for no further turn."""
        ...

    def close(self) -> None:
        """Give back what the policy holds."""
        ...
