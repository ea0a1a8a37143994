"""The score of one step and the protocol of those who give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from steptool.records import Query, Trajectory


@dataclass(frozen=True)
class StepScore:
    """Components of one step's reward. None is a score that is missing or does not apply, never a zero."""

    succ_calling: float | None
    """1: the call is well formed and the tool did not fail; else 0."""
    contribution: float | None
    """How much the step serves the final answer, in [0, 1]; None for a Finish, which is the answer itself."""
    is_solved: float | None = None
    """0, 0.5 (unsure) or 1; on the last step only."""
    votes: Mapping[str, Any] = field(default_factory=dict)
    """What the score was made of, as the annotator found it; must go into JSON."""
    rationale: str = ""


class Annotator(Protocol):
    """Scores trajectories. The name, the version and the prompt's hash say which scores may be compared."""

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
        """Hash of the prompt that was used; empty for annotators without one."""
        ...

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        ...


@runtime_checkable
class Waiting(Annotator, Protocol):
    """An annotator that mostly waits for others. Trajectories are given to it side by side, by threads."""

    @property
    def concurrency(self) -> int:
        """Trajectories at once."""
        ...

    def counts(self) -> dict[str, float]:
        """What was asked, came back and was spent until now, by name."""
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...
