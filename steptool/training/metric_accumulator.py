"""What an optimizer step did, summed over its micro batches and over all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steptool.models.value_head import ActionOutputs

_SUMS = ("tokens", "policy", "value", "kl", "clipped", "entropy", "targets", "ret", "ret2", "miss", "miss2")


class MetricAccumulator:
    """Adds up sums over tokens while micro batches pass; `read` gives means and starts anew."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self._accelerator.device)
        self._deviation = torch.zeros((), device=self._accelerator.device)

    @torch.no_grad()
    def add(
        self,
        policy_N: Tensor,
        value_N: Tensor,
        ratio_N: Tensor,
        out: ActionOutputs,
        inputs: dict[str, Any],
        clip: float,
    ) -> None:
        """Add one micro batch: its losses (already masked), ratios, outputs and inputs."""
        mask_N, targets_N = inputs["weight_N"], inputs["value_mask"]
        returns_N = inputs["returns"] * targets_N
        miss_N = (inputs["returns"] - out.values) * targets_N
        away_N = (ratio_N - 1.0).abs() * mask_N
        sums = [
            mask_N,
            policy_N,
            value_N,
            (inputs["old_log_probs"] - inputs["reference"]) * mask_N,
            away_N > clip,
            out.entropy * mask_N,
            targets_N,
            returns_N,
            returns_N**2,
            miss_N,
            miss_N**2,
        ]
        self._sums += torch.stack([s.sum(dtype=torch.float64) for s in sums])
        self._deviation = torch.maximum(self._deviation, away_N.max())

    def read(self) -> dict[str, float]:
        """Means over the tokens since the last call, over all processes."""
        sums = dict(zip(_SUMS, self._accelerator.reduce(self._sums, "sum").tolist(), strict=True))
        deviation = float(self._accelerator.gather(self._deviation.reshape(1)).max())
        self._reset()
        tokens, targets = max(1.0, sums["tokens"]), max(1.0, sums["targets"])
        spread = sums["ret2"] / targets - (sums["ret"] / targets) ** 2
        missed = sums["miss2"] / targets - (sums["miss"] / targets) ** 2
        return {
            "policy_loss": sums["policy"] / tokens,
            "value_loss": sums["value"] / targets,
            "kl": sums["kl"] / tokens,
            "clip_fraction": sums["clipped"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "ratio_deviation": deviation,
            "explained_variance": 1.0 - missed / spread if spread > 1e-12 else 0.0,
            "tokens": sums["tokens"],
        }
