"""What the models say of the action tokens of a round before the first update."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from steptool.models.actor import Actor
from steptool.models.batch import Spanned, action_places, collate
from steptool.models.sharding import is_sharded
from steptool.training.plan import PassLimit, forward_passes, packed_places, share_passes
from steptool.training.processes import processes, sum_over_processes

Floats = npt.NDArray[np.floating]
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
        partial = (folder / FILE).with_suffix(".partial")
        save_file(vars(self), partial, metadata={"fingerprint": fingerprint, "sha256": self._digest(fingerprint)})
        partial.replace(folder / FILE)

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


@torch.no_grad()
def score(actor: Actor, reference: Actor | None, sequences: Sequence[Spanned], limit: PassLimit) -> Scores:
    """Score all action tokens, each process its share of the sequences.

    `reference` is the model that the policy is held to; None: the policy itself with its adapter switched off.
    """
    state = processes()
    counts = np.array([len(action_places(row)) for row in sequences], dtype=np.int64)
    lengths = np.array([len(row.input_ids) for row in sequences], dtype=np.int64)
    places = packed_places(counts)
    scores_3N = torch.zeros(3, int(counts.sum()), device=state.device)
    passes = forward_passes(np.arange(len(sequences)), lengths, limit, state.num_processes)
    shares = share_passes(passes, state.process_index, state.num_processes, together=is_sharded(actor))
    for rows, valid in shares:
        batch = collate([sequences[i] for i in rows], limit.packed).to(state.device)
        out = actor(batch)
        values_N = actor.values(out.states_NH) if actor.head else torch.zeros_like(out.log_probs_N)
        own = (out.log_probs_N, actor.reference_log_probs(batch, reference), values_N)
        if not valid:
            continue
        scores_3N[:, torch.from_numpy(np.concatenate([places[i] for i in rows])).to(state.device)] = torch.stack(own)
    # every process has filled its own places and left zeros elsewhere
    return Scores(*sum_over_processes(scores_3N).cpu().numpy())
