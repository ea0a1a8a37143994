"""The two clipped losses of PPO, per action token."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(ratio_N: Tensor, advantages_N: Tensor, clip: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) for each token, with rho = pi(a|s) / pi_old(a|s) (Schulman 2017)."""
    clipped_N = ratio_N.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2 for each token."""
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2)
