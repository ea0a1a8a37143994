"""What comes out of a run of retraining: the decision with its figures, and how the run ended."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Criterion(BaseModel):
    """One part of the rule: challenger less champion, paired over tasks, and whether the challenger passes it."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    statement: str
    """The figure and its bound in words."""
    tasks: int
    measured: bool = False
    """Whether the criterion rests on a difference, which follows with its 95% interval."""
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0


class Decision(BaseModel):
    """What the rule decides, and why."""

    model_config = ConfigDict(frozen=True)

    criteria: list[Criterion]
    left_out: int = 0
    """Number of held-out tasks that do not count, since the champion was trained on them."""

    @property
    def promote(self) -> bool:
        """Whether the challenger passes every part of the rule."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def reasons(self) -> list[str]:
        """What speaks against the challenger, in words."""
        return [f"{criterion.name}: {criterion.statement}" for criterion in self.criteria if not criterion.passed]


class Result(StrEnum):
    """How a run ended."""

    PROMOTED = "promoted"
    """The challenger is in service."""
    REFUSED = "refused"
    """The champion stays in service, for the reasons of the outcome."""
    SKIPPED = "skipped"
    """There was no new data."""
    FAILED = "failed"
    """An error ended the run. The data that it read stay new."""


FINISHED = frozenset({Result.PROMOTED, Result.REFUSED})
"""Results of the runs that trained on the new data."""


class RunOutcome(BaseModel):
    """The end of a run."""

    model_config = ConfigDict(frozen=True)

    result: Result
    reasons: list[str]
    """Why, in words."""
    version: str = ""
    """The challenger's version; empty where it was not published."""
    stale: bool = False
    """The challenger was refused because another model was promoted meanwhile. The new data stay new, since nothing
    trained on them was compared with the model that is in service now."""
    decision: Decision | None = None
    """The figures of the rule; None where there was no challenger."""
