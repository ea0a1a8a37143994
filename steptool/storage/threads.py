"""Work that mostly waits, done by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")
_AHEAD = 4
"""Items, for each thread, that are taken before the result of the first of them was taken."""


def map_in_order(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """Do `work` on each item in threads, and yield the results in the order of the items. An error stops the rest."""
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[T]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= _AHEAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
