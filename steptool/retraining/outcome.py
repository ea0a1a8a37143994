"""What is told of a run of retraining: the decision with its figures, and how the run ended."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Criterion(BaseModel):
    """One part of the rule: challenger less champion, paired over tasks, and whether it lets the challenger pass."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    said: str
    """The figure and its bound in words."""
    tasks: int
    measured: bool = False
    """Whether it rests on a difference, which follows with its 95% interval."""
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0


class Decision(BaseModel):
    """What the rule says, and why."""

    model_config = ConfigDict(frozen=True)

    criteria: list[Criterion]
    left_out: int = 0
    """Held-out tasks that do not count, since the champion was trained on them."""

    @property
    def promote(self) -> bool:
        """Whether every part of the rule lets the challenger pass."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def reasons(self) -> list[str]:
        """What speaks against the challenger, in words."""
        return [f"{criterion.name}: {criterion.said}" for criterion in self.criteria if not criterion.passed]


class Result(StrEnum):
    """How a run ended."""

    PROMOTED = "promoted"
    """The challenger is in service."""
    REFUSED = "refused"
    """The model that was in service stays, for reasons that are told."""
    SKIPPED = "skipped"
    """There was nothing new."""
    FAILED = "failed"
    """Something broke; what the run had seen counts as not seen."""


FINISHED = frozenset({Result.PROMOTED, Result.REFUSED})
"""Results of the runs that have trained on what was new."""


class RunOutcome(BaseModel):
    """The end of a run."""

    model_config = ConfigDict(frozen=True)

    result: Result
    reasons: list[str]
    """Why, in words."""
    version: str = ""
    """The challenger's version, where it was published."""
    stale: bool = False
    """Refused since somebody was promoted meanwhile: what was new has not been judged, and stays new."""
    decision: Decision | None = None
    """The figures of the rule, where there was a challenger."""
