"""The end of a night with a challenger: refused, or published and put in service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.artifacts.contracts import Row
from steptool.config import Config
from steptool.evaluation.bootstrap import per_query
from steptool.evaluation.metrics import wilson
from steptool.evaluation.table import MAIN
from steptool.registry import Conflict, Registry
from steptool.retraining.gate import CHALLENGER, CHAMPION
from steptool.retraining.outcome import Decision, Result, RunOutcome
from steptool.retraining.plan import RetrainingPlan


def settle(
    registry: Registry,
    night: RetrainingPlan,
    decision: Decision,
    approved: bool,
    model: Path,
    metadata: Mapping[str, Any],
) -> RunOutcome:
    """Promote the model if the rule and the person allow it, and nobody was promoted since the night began.

    Calling it again after it was cut off, at whatever moment, does the rest of the same.
    """
    if not decision.promote:
        return RunOutcome(result=Result.REFUSED, reasons=decision.reasons, decision=decision)
    if not approved:
        return RunOutcome(result=Result.REFUSED, reasons=["approval: a person said no"], decision=decision)
    version, gain = registry.publish(model, metadata).version_id, _gain(decision)
    try:
        registry.promote(version, after=night.sequence, reason=f"run {night.run_id}: {gain}")
    except Conflict as conflict:
        stale = [f"stale comparison: {conflict}"]
        return RunOutcome(result=Result.REFUSED, reasons=stale, version=version, stale=True, decision=decision)
    return RunOutcome(result=Result.PROMOTED, reasons=[gain], version=version, decision=decision)


def described(
    config: Config, night: RetrainingPlan, decision: Decision, rows: Sequence[Row], code_version: str
) -> dict[str, Any]:
    """What the registry keeps with a version: what it was made from and by, and what it was measured at."""
    greedy = [row for row in rows if row["decoding"] == MAIN]
    measured = {"champion": CHAMPION, "challenger": CHALLENGER}
    return {
        "run_id": night.run_id,
        "trained_from": night.champion or night.base,
        "new_data": [source.model_dump(mode="json") for source in night.new],
        "decision": decision.model_dump(mode="json"),
        "results": {name: _result([r for r in greedy if r["model"] == model]) for name, model in measured.items()},
        "config": night.config(config).model_dump(mode="json"),
        "code_version": code_version,
    }


def _result(rows: Sequence[Row]) -> dict[str, float]:
    passed = per_query(rows, "pass_rate")
    rate, tasks = passed.estimate(), len(passed.queries)
    low, high = wilson(rate, tasks)
    return {"pass_rate": rate, "low": low, "high": high, "tasks": tasks}


def _gain(decision: Decision) -> str:
    return next(f"{c.name}: {c.said}" for c in decision.criteria if c.measured)
