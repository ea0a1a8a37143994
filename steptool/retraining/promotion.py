"""The end of a run: the challenger is refused or put in service, and the registry keeps what happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from steptool.config import Config
from steptool.evaluation.bootstrap import per_query, wilson
from steptool.evaluation.compare import GREEDY
from steptool.records import Evaluation
from steptool.registry import Conflict, Registry
from steptool.retraining.gate import CHALLENGER, CHAMPION
from steptool.retraining.plan import Decision, Result, RetrainingPlan, RunOutcome

_NO_CAUSE = "the error has no message"
_MESSAGE_HEADING, _LOCAL_PREFIX = "\nMessage:\n", "Error encountered while executing"
"""What Flyte puts before an exception's own message: on a cluster after the traceback, and in a local run."""


def copy_model(model: Path, folder: Path) -> None:
    """Put the files of a model into a folder: as links where both are on one file system, else as copies."""
    shutil.copytree(model, folder, dirs_exist_ok=True, copy_function=_link_or_copy)


def settle(
    registry: Registry,
    plan: RetrainingPlan,
    decision: Decision,
    approved: bool,
    model: Path,
    metadata: Mapping[str, Any],
) -> RunOutcome:
    """Promote the model if the rule and the person allow it, and if the champion is still the one it was compared with.

    A second call after an interruption completes what the first one began, and returns the same outcome.
    """
    if not decision.promote:
        return RunOutcome(result=Result.REFUSED, reasons=decision.reasons, decision=decision)
    if not approved:
        return RunOutcome(result=Result.REFUSED, reasons=["approval: a person said no"], decision=decision)
    version, gain = registry.publish(model, metadata).version_id, _state_gain(decision)
    try:
        registry.promote(version, after=plan.sequence, reason=f"run {plan.run_id}: {gain}")
    except Conflict as conflict:
        reasons = [f"stale comparison: {conflict}"]
        return RunOutcome(result=Result.REFUSED, reasons=reasons, version=version, stale=True, decision=decision)
    return RunOutcome(result=Result.PROMOTED, reasons=[gain], version=version, decision=decision)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def describe_version(
    config: Config, plan: RetrainingPlan, decision: Decision, rows: Sequence[Evaluation], code_version: str
) -> dict[str, Any]:
    """The metadata of the challenger's version: what made it, from what, and its results."""
    greedy = [row for row in rows if row.decoding == GREEDY]
    models = {"champion": CHAMPION, "challenger": CHALLENGER}
    return {
        "run_id": plan.run_id,
        "trained_from": plan.champion or plan.base,
        "new_data": [source.model_dump(mode="json") for source in plan.new],
        "decision": decision.model_dump(mode="json"),
        "results": {name: _pass_rate([r for r in greedy if r.model == model]) for name, model in models.items()},
        "config": plan.configure(config).model_dump(mode="json"),
        "code_version": code_version,
    }


def describe_run(plan: RetrainingPlan, outcome: RunOutcome, page: str) -> dict[str, Any]:
    """A finished run as plain data: champion, new data, figures, result, and the place of its page."""
    return {**plan.model_dump(mode="json"), **outcome.model_dump(mode="json"), "page": page}


def describe_failure(kickoff: datetime, message: str) -> dict[str, Any]:
    """A failed run as plain data, with the cause in one line. It counts as having seen no data."""
    reasons = [find_cause(message)]
    return {"kickoff": kickoff.isoformat(), "result": str(Result.FAILED), "reasons": reasons, "new": []}


def find_cause(message: str) -> str:
    """The line of an error's message that names the cause, without the lines that Flyte puts around it."""
    own_message = message.rpartition(_MESSAGE_HEADING)[2]
    lines = [line.strip() for line in own_message.splitlines()]
    return next((line for line in lines if line and not line.startswith(_LOCAL_PREFIX)), _NO_CAUSE)


def _pass_rate(rows: Sequence[Evaluation]) -> dict[str, float | None]:
    """The pass rate over the tasks with a verdict, with Wilson's 95% interval; None where no task has one."""
    passed = per_query(rows, "pass_rate")
    rate, tasks = passed.estimate(), len(passed.queries)
    low, high = (None, None) if rate is None else wilson(rate, tasks)
    return {"pass_rate": rate, "low": low, "high": high, "tasks": tasks}


def _state_gain(decision: Decision) -> str:
    return next(f"{c.name}: {c.statement}" for c in decision.criteria if c.measured)
