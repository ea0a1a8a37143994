"""The model that is trained: a policy, and a value head where the algorithm needs one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from steptool.models.batch import TokenBatch
from steptool.models.logprobs import causal_lm, token_log_probs
from steptool.models.value_head import ValueHead


class ActionOutputs(NamedTuple):
    """What a forward pass says of the action tokens of a batch, sequence after sequence."""

    log_probs_N: Tensor
    """Nats, float32, at the temperature of the rollouts."""
    entropy_N: Tensor
    """Nats, float32, without gradient."""
    states_NH: Tensor
    """Hidden states just before the tokens."""


class Actor(nn.Module):
    """A causal language model (plain or wrapped by peft) and, where an algorithm needs it, a value head.

    With `detach_value` the value loss does not reach the backbone. `temperature` is that of the rollouts: the policy
    that is improved is the one that was sampled from. Dropout is off at all times: the ratio of new to old
    probabilities has to be 1 before the first update.
    """

    def __init__(
        self,
        policy: nn.Module,
        head: ValueHead | None = None,
        *,
        detach_value: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.head = head
        self.detach_value = detach_value
        self.temperature = temperature

    def forward(self, batch: TokenBatch) -> ActionOutputs:
        """Log-probability and entropy of each action token; the backbone runs once, only its states go further."""
        return score_actions(self.policy, batch, self.temperature)

    def values(self, states_NH: Tensor) -> Tensor:
        """Values [N] of the states of a forward pass, float32."""
        if self.head is None:
            raise ValueError("this model has no value head; an algorithm that uses values sets needs_value_head")
        values_N: Tensor = self.head(states_NH.detach() if self.detach_value else states_NH)
        return values_N

    @torch.no_grad()
    def reference_log_probs(self, batch: TokenBatch, reference: nn.Module | None) -> Tensor:
        """Log-probabilities [N] under the reference: another model or, if None, this one with its adapter off."""
        if reference is not None:
            return score_actions(reference, batch, self.temperature).log_probs_N
        with self.policy.disable_adapter():  # type: ignore[operator]
            return score_actions(self.policy, batch, self.temperature).log_probs_N


def score_actions(policy: nn.Module, batch: TokenBatch, temperature: float) -> ActionOutputs:
    """Run a policy on a batch."""
    states_NH = action_states(policy, batch)
    log_probs_N, entropy_N = token_log_probs(causal_lm(policy), states_NH, batch.targets_N, temperature)
    return ActionOutputs(log_probs_N, entropy_N, states_NH)


def action_states(policy: nn.Module, batch: TokenBatch) -> Tensor:
    """Last hidden states [N, H] just before each action token."""
    backbone = causal_lm(policy).base_model
    hidden_BLH: Tensor = backbone(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
    return hidden_BLH.flatten(0, 1)[batch.before_N]
