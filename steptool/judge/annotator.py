"""The score of a step, and the protocol of whatever gives such scores: rules, a judge, a user's own class."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from steptool.records import Query, Trajectory

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


@dataclass(frozen=True)
class StepScore:
    """Components of one step's reward. None means that a score is missing or does not apply; it never stands for 0."""

    succ_calling: float | None
    """1 if the call is well formed and the tool did not fail, else 0."""
    contribution: float | None
    """How much the step serves the final answer, in [0, 1]. A Finish has none, since it is the answer itself."""
    is_solved: float | None = None
    """0, 0.5 (unsure) or 1; only the last step has one."""
    votes: Mapping[str, Any] = field(default_factory=dict)
    """What the score was made of, as values that JSON can hold."""
    rationale: str = ""


class Annotator(Protocol):
    """Scores trajectories. Scores may be compared only where name, version and prompt hash are equal."""

    @property
    def name(self) -> str:
        """Name under which the scores are stored."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same trajectory may get another score."""
        ...

    @property
    def prompt_hash(self) -> str:
        """Hash of the prompt; empty for annotators without a prompt."""
        ...

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        ...


@runtime_checkable
class RemoteAnnotator(Annotator, Protocol):
    """An annotator that waits for a server. Several threads give it trajectories at the same time."""

    @property
    def concurrency(self) -> int:
        """Number of trajectories at the same time."""
        ...

    def counts(self) -> dict[str, float]:
        """Requests, replies and costs until now, by name."""
        ...

    def missing_reasons(self) -> Counter[str]:
        """Scores that could not be had until now, counted by reason."""
        ...

    def require_votes(self) -> None:
        """Raise an error that says why, if scores were asked for and none came."""
        ...

    def close(self) -> None:
        """Close connections and files."""
        ...


def count_reasons(reasons: Mapping[str, int], most: int = 3) -> str:
    """The most frequent reasons with their numbers, in one line."""
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    rest = sum(count for _, count in ranked[most:])
    parts = [f"{count} × {reason}" for reason, count in ranked[:most]]
    return "; ".join([*parts, *([f"{rest} × something else"] if rest else [])])


def replace_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which tools and models may return but no request or file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
