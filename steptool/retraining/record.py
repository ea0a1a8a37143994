"""What the registry keeps of a run of retraining, as plain data for JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from steptool.retraining.outcome import Result, RunOutcome
from steptool.retraining.plan import RetrainingPlan

_UNKNOWN = "the cause was not told"
_TOLD, _WRAPPED = "\nMessage:\n", "Error encountered while executing"
"""Before the exception's words in what a pod reports, after its traceback; and what a local run puts before them."""


def document(night: RetrainingPlan, ending: RunOutcome, page: str) -> dict[str, Any]:
    """A run that came to an end: who was in service, what was new, the figures, the result, the place of its page."""
    plan, end = night.model_dump(mode="json"), ending.model_dump(mode="json")
    return {**plan, **end, "page": page}


def failure(kickoff: datetime, message: str) -> dict[str, Any]:
    """A run that broke, with the cause in one line. It has seen nothing."""
    return {"kickoff": kickoff.isoformat(), "result": str(Result.FAILED), "reasons": [cause(message)], "new": []}


def cause(message: str) -> str:
    """The line of an error's message that says what went wrong, without what Flyte puts around it."""
    told = message.rpartition(_TOLD)[2]
    lines = [line.strip() for line in told.splitlines()]
    return next((line for line in lines if line and not line.startswith(_WRAPPED)), _UNKNOWN)
