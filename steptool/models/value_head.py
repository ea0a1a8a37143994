"""The policy and its value head as one module: the backbone runs once, only action tokens reach the heads."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steptool.models.batch import IGNORED
from steptool.models.logprobs import causal_lm, token_log_probs

WIDTH = 128
FILE = "training/value_head.safetensors"
"""Its place in a model folder (steptool.models.folder)."""


class ActionOutputs(NamedTuple):
    """One entry per action token, packed row by row: [N], float32."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor
    """V of the state just before the token."""


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


class ActorCritic(nn.Module):
    """A causal language model (plain or wrapped by peft) and a value head on its last hidden states.

    With `detach_value` the value loss does not reach the backbone. `temperature` is that of the rollouts: the policy
    that is improved is the one that was sampled from. Dropout is off at all times: the ratio of new to old
    probabilities has to be 1 before the first update.
    """

    accepts_loss_kwargs = True

    def __init__(self, policy: nn.Module, head: ValueHead, *, detach_value: bool, temperature: float = 1.0) -> None:
        super().__init__()
        self.policy = policy
        self.head = head
        self.detach_value = detach_value
        self.temperature = temperature

    def train(self, mode: bool = True) -> ActorCritic:
        """Set the mode of the head; the policy stays in evaluation mode."""
        super().train(mode)
        self.policy.eval()
        return self

    def forward(self, input_ids: Tensor, labels: Tensor) -> ActionOutputs:
        """Outputs of the action tokens of a collated batch: `input_ids` [B, L], `labels` [B, L]."""
        hidden_NH, targets_N = action_states(self.policy, input_ids, labels)
        log_probs_N, entropy_N = token_log_probs(causal_lm(self.policy), hidden_NH, targets_N, self.temperature)
        values_N = self.head(hidden_NH.detach() if self.detach_value else hidden_NH)
        return ActionOutputs(log_probs_N, entropy_N, values_N)


def action_states(policy: nn.Module, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] just before each action token, and the action tokens [N].

    Rows are padded on the right, so causal attention needs no mask: no action token can see the padding.
    """
    backbone = causal_lm(policy).base_model
    hidden_BLH = backbone(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    targets_BL = labels[:, 1:]
    chosen_BL = targets_BL != IGNORED
    return hidden_BLH[chosen_BL], targets_BL[chosen_BL]


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
