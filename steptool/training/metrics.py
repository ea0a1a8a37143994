"""What a round hands back, and a trainer's log as rows of METRICS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from steptool.contracts.columns import Row

_OF_EVERY_STEP = ("loss", "learning_rate", "grad_norm")
_OF_PPO = ("policy_loss", "value_loss", "kl", "ratio_deviation", "clip_fraction", "entropy", "explained_variance")
NAMES = (*_OF_EVERY_STEP, *_OF_PPO, "tokens")
"""Metrics of an optimizer step. loss, policy_loss, value_loss: means over its tokens; kl: mean log pi - log ref (nats)
when the round was scored; ratio_deviation: largest |pi / pi_old - 1|; explained_variance: 1 - Var(R - V) / Var(R)."""


@dataclass(frozen=True)
class RoundResult:
    """What a round did."""

    metrics: list[Row]
    """Rows of METRICS, some for each optimizer step."""
    advantages: list[Row]
    """Rows of ADVANTAGES; empty for rejection fine-tuning."""
    left_out: int
    """Trajectories that were not trained on: without steps or rewards, or unsolved in rejection fine-tuning."""
    tokens: int
    """Action tokens trained on, each pass counted."""
    note: str = ""
    """What a reader should know, empty if all went as usual."""


def metric_rows(history: Iterable[Mapping[str, Any]], stage: str, round: int) -> list[Row]:
    """The trainer's log as rows of METRICS; `update` counts the optimizer steps of the round from 0."""
    return [
        {"stage": stage, "round": round, "update": int(entry["step"]) - 1, "name": name, "value": float(entry[name])}
        for entry in history
        if "learning_rate" in entry
        for name in NAMES
        if name in entry
    ]
