"""Comparisons of model folders, for tests of training."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from steptool.models.actor import Actor, collate
from steptool.models.load import load_model
from steptool.records import Trajectory


def mean_log_prob(folder: Path, rows: list[Trajectory], temperature: float = 1.0) -> float:
    """Mean log-probability (nats) of the action tokens of the rows under the model of a folder."""
    with torch.no_grad():
        out = Actor(load_model(folder), temperature=temperature)(collate(rows))
    return float(out.log_probs_N.mean())


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same numbers."""
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return all(torch.equal(a[name], b[name]) for name in a)
