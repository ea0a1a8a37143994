"""What a round of PPO learns from: the trajectories, what the models said of them once, and the advantages that follow.

Arrays named _N hold one entry per action token of the round, trajectory after trajectory, packed end to end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from steptool.config import CreditConfig
from steptool.contracts.columns import Row
from steptool.records import Trajectory
from steptool.training import credit

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Episodes:
    """The trajectories that can be trained on, each with the rewards [T] of its steps."""

    trajectories: Sequence[Trajectory]
    rewards: Sequence[npt.NDArray[np.floating]]

    @cached_property
    def action_tokens(self) -> npt.NDArray[np.int64]:
        """Action tokens of each trajectory."""
        return np.array([t.action_tokens for t in self.trajectories], dtype=np.int64)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each trajectory."""
        return np.array([len(t.input_ids) for t in self.trajectories], dtype=np.int64)

    @property
    def total(self) -> int:
        """Action tokens of all trajectories: N."""
        return int(self.action_tokens.sum())

    def split(self, packed_N: Floats) -> list[Floats]:
        """A packed array cut into one part per trajectory."""
        return np.split(packed_N, np.cumsum(self.action_tokens)[:-1])

    @property
    def fingerprint(self) -> str:
        """Changes with any token or reward."""
        digest = hashlib.sha256()
        for trajectory, rewards in zip(self.trajectories, self.rewards, strict=True):
            digest.update(np.asarray(trajectory.input_ids, np.int64).tobytes())
            digest.update(np.asarray(rewards, np.float64).tobytes())
        return digest.hexdigest()


def select(
    trajectories: Sequence[Trajectory], step_rewards: Sequence[npt.NDArray[np.floating] | None]
) -> tuple[Episodes, int]:
    """Trajectories that have steps and rewards, and how many were left out because they lack one or the other.

    Raises ValueError if none is left, or if a trajectory has another number of rewards than of steps.
    """
    kept = []
    for trajectory, rewards in zip(trajectories, step_rewards, strict=True):
        if rewards is None or not trajectory.spans:
            continue
        if len(rewards) != len(trajectory.spans):
            raise ValueError(
                f"trajectory {trajectory.trajectory_id}: expected one reward for each of its "
                f"{len(trajectory.spans)} steps, got {len(rewards)}"
            )
        kept.append((trajectory, rewards))
    if not kept:
        raise ValueError(
            f"none of the {len(trajectories)} trajectories has steps and complete rewards: there is nothing to train "
            "on; look at the missing components in the rewards of this round"
        )
    return Episodes([t for t, _ in kept], [r for _, r in kept]), len(trajectories) - len(kept)


@dataclass(frozen=True)
class Scores:
    """What the models say of the action tokens before the first update. All [N], nats where log-probabilities."""

    log_probs_N: Floats
    reference_N: Floats
    values_N: Floats

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the scores; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(vars(self), partial, metadata={"fingerprint": fingerprint})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Scores:
        """Read scores. Raises ValueError if they belong to other trajectories or rewards."""
        with safe_open(path, framework="numpy") as file:
            if file.metadata()["fingerprint"] != fingerprint:
                raise ValueError(
                    f"{path}: these checkpoints belong to other trajectories or rewards than the ones given; "
                    "remove the folder to train this round from its start"
                )
            return cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


@dataclass(frozen=True)
class Experience:
    """Everything that the losses of one round need, as tensors on the CPU, cut per trajectory."""

    episodes: Episodes
    old_log_probs: Sequence[torch.Tensor]
    reference: Sequence[torch.Tensor]
    old_values: Sequence[torch.Tensor]
    advantages: Sequence[torch.Tensor]
    """Whitened over the action tokens of the round if the configuration says so."""
    returns: Sequence[torch.Tensor]
    value_mask: Sequence[torch.Tensor]
    rows: Sequence[Row]
    """Rows of ADVANTAGES."""


def experience(episodes: Episodes, scores: Scores, kl_coef: float, config: CreditConfig) -> Experience:
    """Per-token KL penalty, step rewards and values to advantages and returns."""
    kl_N = scores.log_probs_N - scores.reference_N
    parts = credit.advantages_batch(
        list(episodes.rewards),
        [credit.step_lengths(t.spans) for t in episodes.trajectories],
        episodes.split(scores.values_N),
        episodes.split(kl_N),
        kl_coef,
        config,
    )
    raw = [p.advantages_N for p in parts]
    final = credit.whiten(raw)[0] if config.whiten else raw
    return Experience(
        episodes,
        _tensors(episodes.split(scores.log_probs_N)),
        _tensors(episodes.split(scores.reference_N)),
        _tensors(episodes.split(scores.values_N)),
        _tensors(final),
        _tensors([p.returns_N for p in parts]),
        _tensors([p.value_mask_N for p in parts]),
        _advantage_rows(episodes, kl_N, scores.values_N, np.concatenate(raw)),
    )


def _tensors(parts: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
    return [torch.tensor(part, dtype=torch.float32) for part in parts]


def _advantage_rows(
    episodes: Episodes, kl_N: Floats, values_N: Floats, advantages_N: npt.NDArray[np.floating]
) -> list[Row]:
    rows: list[Row] = []
    start = 0
    for trajectory, rewards in zip(episodes.trajectories, episodes.rewards, strict=True):
        for step, ((first, last), reward) in enumerate(zip(trajectory.spans, rewards, strict=True)):
            tokens = slice(start, start + last - first)
            rows.append(
                {
                    "trajectory_id": trajectory.trajectory_id,
                    "step": step,
                    "reward": float(reward),
                    "kl": float(kl_N[tokens].sum()),
                    "value": float(values_N[start]),
                    "advantage": float(advantages_N[tokens].mean()),
                }
            )
            start = tokens.stop
    return rows
