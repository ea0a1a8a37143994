"""Evaluations for tests that need few of their fields."""

from typing import Any

from steptool.records import Evaluation

DEFAULTS: dict[str, Any] = {
    "split": "heldout",
    "tier": "single",
    "model": "m",
    "decoding": "greedy",
    "repeat": 0,
    "verdict_source": "environment",
    "recall": 1.0,
    "steps": 3,
    "calls": 2,
    "invalid_calls": 0,
    "redundant_calls": 0,
    "tokens": 30,
    "prompt_tokens": None,
    "money": None,
    "seconds": 0.1,
    "stop_reason": "finished",
}


def make_evaluation(query_id: str, passed: float | None, **fields: Any) -> Evaluation:
    """An evaluation with these fields, and the rest as in DEFAULTS."""
    values = {**DEFAULTS, **fields}
    return Evaluation(query_id=query_id, passed=passed, **{"trajectory_id": f"{values['model']}/{query_id}", **values})
