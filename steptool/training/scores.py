"""What the models say of the action tokens of a round before the first update, and the mismatch with the engine.

The engine that sampled a round and the model that is trained on it have the same weights, but not the same kernels,
precision or batches, so the probabilities that the engine sampled by (mu) are not quite those that training computes
(pi). For the action token i of a round, before the first update,

    d_i = log pi_i - log mu_i,      w_i = exp(d_i)

where log mu_i is stored in the trajectories and log pi_i is computed at the start of the round. The figures of d say
whether the two are the same policy but for rounding. The importance weights w turn means over mu's tokens into means
under pi.

Two ratios stand side by side, as in decoupled PPO (Hilton et al. 2021, "Batch size-invariance for policy
optimization"): the clipped ratio rho compares the policy with pi of the start of the round, never with mu, and w
compares pi with mu. A loss is the mean over tokens of w_i * clipped_loss(rho_i, A_i).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from steptool.config import PPOConfig
from steptool.models.actor import Actor, Spanned, TokenBatch, collate, find_action_places
from steptool.models.sharding import is_sharded
from steptool.records import Metric, Trajectory
from steptool.records.tables import write_whole
from steptool.training.processes import (
    PassLimit,
    cut_forward_passes,
    find_packed_places,
    get_processes,
    share_passes,
    sum_over_processes,
)

Floats = npt.NDArray[np.floating]


class MismatchError(ValueError):
    """A round whose tokens were sampled from another distribution than the one that is trained."""


@dataclass(frozen=True)
class Mismatch:
    """Differences between the log-probabilities of training and of the engine, over the action tokens of a round."""

    mean: float
    """Mean of |d| (nats)."""
    p99: float
    """99% quantile of |d|."""
    largest: float
    k1: float
    """Mean of -d: the estimate of KL(mu || pi) without bias; by chance it can be below 0."""
    k3: float
    """Mean of w - 1 - d: the same with less variance, never below 0 (Schulman 2020, "Approximating KL divergence")."""
    effective_share: float
    """Effective sample size of the weights as a share of the tokens, (sum w)^2 / (N * sum w^2): 1 where all weights
    are equal (Kong 1992)."""
    beyond_cap: float
    """Share of the tokens whose weight is above `ppo.importance_cap`."""

    def metrics(self, stage: str, round_index: int) -> list[Metric]:
        """The figures as metrics of the round's first update."""
        names = {
            "mismatch_mean": self.mean, "mismatch_p99": self.p99, "mismatch_max": self.largest,
            "mismatch_k1": self.k1, "mismatch_k3": self.k3,
            "effective_sample_share": self.effective_share, "beyond_importance_cap": self.beyond_cap,
        }  # fmt: skip
        return [Metric(stage, round_index, 0, name, value) for name, value in names.items()]


def read_engine_log_probs(trajectories: Sequence[Trajectory]) -> Floats | None:
    """The stored log-probabilities [N] of all action tokens, packed end to end; None where a trajectory has none."""
    if any(len(t.logprobs) != t.action_tokens for t in trajectories):
        return None
    return np.concatenate([t.logprobs for t in trajectories])


def measure_mismatch(log_probs_N: Floats, engine_N: Floats, importance_cap: float) -> Mismatch:
    """The figures of a round, from the log-probabilities (nats) of training and of the engine."""
    d_N = log_probs_N.astype(np.float64) - engine_N
    w_N, away_N = np.exp(d_N), np.abs(d_N)
    share_N = np.exp(d_N - d_N.max())
    return Mismatch(
        mean=float(away_N.mean()),
        p99=float(np.quantile(away_N, 0.99)),
        largest=float(away_N.max()),
        k1=float(-d_N.mean()),
        k3=float((w_N - 1.0 - d_N).mean()),
        effective_share=float(share_N.sum() ** 2 / (len(share_N) * (share_N**2).sum())),
        beyond_cap=float((w_N > importance_cap).mean()),
    )


def check_mismatch(mismatch: Mismatch, ppo: PPOConfig, round_index: int) -> None:
    """Raise MismatchError where the mean difference is above `ppo.max_mismatch`."""
    if ppo.max_mismatch and not mismatch.mean <= ppo.max_mismatch:
        raise MismatchError(
            f"round {round_index}: the log-probabilities stored by the engine differ from those of training by "
            f"{mismatch.mean:.3g} nats per token on average (99%: {mismatch.p99:.3g}, largest: {mismatch.largest:.3g}, "
            f"effective sample {mismatch.effective_share:.0%}); ppo.max_mismatch allows {ppo.max_mismatch:g}. Look "
            "whether rollouts and training have the same weights, precision and rollout.temperature; ppo.importance "
            "corrects what is left, and ppo.max_mismatch: 0 turns this check off"
        )


def compute_importance_weights(log_probs_N: Floats, engine_N: Floats | None, ppo: PPOConfig) -> Floats:
    """The factor [N] of each token's policy loss, by `ppo.importance` with the cap C of `ppo.importance_cap`.

    none:       1
    truncated:  min(w, C)            truncated importance sampling (TIS; Yao et al. 2025, "Your efficient RL framework
                                     secretly brings you off-policy RL training"; Ionides 2008)
    masked:     w where w <= C, else 0

    verl, SkyRL and TRL implement both. The loss is still divided by the number of all tokens, so a token that is left
    out makes no other token count more. Raises ValueError where weights are asked for and the engine's
    log-probabilities are not known.
    """
    if ppo.importance == "none":
        return np.ones(len(log_probs_N))
    if engine_N is None:
        raise ValueError(
            f"ppo.importance is {ppo.importance}, but not every trajectory of the round has the log-probabilities of "
            "its tokens; take trajectories that a rollout of this version has made, or set ppo.importance to none"
        )
    w_N: Floats = np.exp(log_probs_N.astype(np.float64) - engine_N)
    if ppo.importance == "truncated":
        return np.minimum(w_N, ppo.importance_cap)
    return np.where(w_N <= ppo.importance_cap, w_N, 0.0)


FILE = "scores.safetensors"
"""Its place beside the checkpoints of a round."""


def fingerprint(sequences: Sequence[Spanned], rewards: Sequence[Floats] = ()) -> str:
    """A digest of training data that changes with any token, span or reward."""
    digest = hashlib.sha256()
    for row in sequences:
        digest.update(np.asarray(row.input_ids, np.int64).tobytes() + np.asarray(row.spans, np.int64).tobytes())
    for rewards_T in rewards:
        digest.update(np.asarray(rewards_T, np.float64).tobytes())
    return digest.hexdigest()


def check_fingerprint(path: Path, stored: str, expected: str) -> None:
    """Raise ValueError if a file of an earlier attempt was made from other training data."""
    if stored != expected:
        raise ValueError(
            f"{path.parent}: these checkpoints belong to other trajectories or rewards than the ones given; remove the "
            "folder to train from the start"
        )


@dataclass(frozen=True)
class Scores:
    """One entry per action token of the training data, packed end to end; float32."""

    log_probs_N: Floats
    """Log-probabilities under the policy (nats)."""
    reference_N: Floats
    """Log-probabilities under the reference (nats)."""
    values_N: Floats
    """0 where the algorithm has no value head."""

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write the scores beside the checkpoints; the file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"fingerprint": fingerprint, "sha256": self._digest(fingerprint)}
        with write_whole(folder / FILE) as partial:
            save_file(vars(self), partial, metadata=metadata)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Scores | None:
        """Read the scores of an earlier attempt; None without them, or if the file is damaged.

        Raises ValueError if they belong to other training data.
        """
        if not (folder / FILE).is_file():
            return None
        try:
            with safe_open(folder / FILE, framework="numpy") as file:
                metadata = file.metadata()
                scores = cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, TypeError):
            return None
        if scores._digest(metadata.get("fingerprint", "")) != metadata.get("sha256"):
            return None
        check_fingerprint(folder / FILE, metadata["fingerprint"], fingerprint)
        return scores

    def _digest(self, fingerprint: str) -> str:
        digest = hashlib.sha256(fingerprint.encode())
        for name, array_N in sorted(vars(self).items()):
            digest.update(f"{name} {array_N.dtype} {array_N.shape}".encode() + array_N.tobytes())
        return digest.hexdigest()


def score(actor: Actor, reference: Actor | None, sequences: Sequence[Spanned], limit: PassLimit) -> Scores:
    """Score all action tokens, each process its share of the sequences.

    `reference` is the model that the policy is held to; None: the policy itself with its adapter switched off.
    """

    def score_batch(batch: TokenBatch) -> tuple[Tensor, ...]:
        out = actor(batch)
        values_N = actor.compute_values(out.states_NH) if actor.head else torch.zeros_like(out.log_probs_N)
        return out.log_probs_N, actor.compute_reference_log_probs(batch, reference), values_N

    return Scores(*_compute_for_tokens(actor, sequences, limit, 3, score_batch))


def compute_log_probs(actor: Actor, sequences: Sequence[Spanned], limit: PassLimit, temperature: float) -> Floats:
    """Log-probabilities [N] of all action tokens under the policy at a temperature (nats), packed end to end."""
    log_probs_N: Floats = _compute_for_tokens(
        actor, sequences, limit, 1, lambda batch: (actor(batch, temperature).log_probs_N,)
    )[0]
    return log_probs_N


@torch.no_grad()
def _compute_for_tokens(
    actor: Actor,
    sequences: Sequence[Spanned],
    limit: PassLimit,
    figures: int,
    compute: Callable[[TokenBatch], Sequence[Tensor]],
) -> npt.NDArray[np.float32]:
    """What `compute` says of the action tokens [figures, N], each process its share of the sequences."""
    state = get_processes()
    counts = np.array([len(find_action_places(row)) for row in sequences], dtype=np.int64)
    lengths = np.array([len(row.input_ids) for row in sequences], dtype=np.int64)
    places = find_packed_places(counts)
    result_FN = torch.zeros(figures, int(counts.sum()), device=state.device)
    passes = cut_forward_passes(np.arange(len(sequences)), lengths, limit, state.num_processes)
    shares = share_passes(passes, state.process_index, state.num_processes, together=is_sharded(actor))
    for rows, valid in shares:
        batch = collate([sequences[i] for i in rows], limit.packed).to(state.device)
        own = compute(batch)
        if not valid:
            continue
        result_FN[:, torch.from_numpy(np.concatenate([places[i] for i in rows])).to(state.device)] = torch.stack(
            list(own)
        )
    # every process has filled its own places and left zeros elsewhere
    computed: npt.NDArray[np.float32] = sum_over_processes(result_FN).cpu().numpy()
    return computed
