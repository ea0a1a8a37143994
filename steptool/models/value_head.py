"""The value head: what a state is worth, read from the policy's hidden states."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH = 128
FILE = "training/value_head.safetensors"
"""Its place in a model folder (steptool.models.folder)."""


class ValueHead(nn.Module):
    """V(s) = w . tanh(W h(s) + b) + c, zero at first."""

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(hidden_size, WIDTH)
        self.out = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Values [N] of hidden states [N, H]."""
        values_N: Tensor = self.out(torch.tanh(self.hidden(hidden_NH.to(self.out.weight.dtype)))).squeeze(-1)
        return values_N.float()


def load_value_head(folder: Path, hidden_size: int, seed: int) -> ValueHead:
    """The value head of a model folder, or a fresh one where there is none."""
    head = ValueHead(hidden_size, seed)
    if (folder / FILE).is_file():
        head.load_state_dict(load_file(folder / FILE))
    return head


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the value head into a model folder."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, folder / FILE)
