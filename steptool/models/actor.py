"""The model that is trained: a policy, and a value head where the algorithm needs one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from steptool.models.batch import TokenBatch, enable_packing
from steptool.models.logprobs import SMALL_VOCABULARY, TileWays, causal_lm, token_log_probs

WIDTH = 128
FILE = "training/value_head.safetensors"
"""Its place in a model folder (steptool.models.load)."""


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
    """The value head of a model folder, or a fresh one for a folder without a value head."""
    head = ValueHead(hidden_size, seed)
    if (folder / FILE).is_file():
        head.load_state_dict(load_file(folder / FILE))
    return head


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the value head into a model folder."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, folder / FILE)


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
        self.ways = TileWays()
        self.packed = enable_packing(policy)
        """Whether the sequences of a forward pass are packed end to end; else they are padded."""

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of each layer for the backward pass, which then computes the layer a second time."""
        lm = causal_lm(self.policy)
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # layers look at it; the dropout within them stays off

    def accumulate_gradients(self) -> None:
        """Hold one gradient of the size of a large vocabulary and no copies; for training by `backward` alone."""
        lm = causal_lm(self.policy)
        head: Any = lm.get_output_embeddings()
        if head.weight.shape[0] <= SMALL_VOCABULARY:
            return
        self.ways = replace(self.ways, accumulate=True)
        embedding = lm.get_input_embeddings()
        if type(embedding) is nn.Embedding and embedding.weight is head.weight:
            embedding.sparse = True  # its gradient joins the dense one of the output layer, which comes first

    def compile_layers(self) -> None:
        """Compile each layer, and what is done to the logits of a large vocabulary, into fewer kernels."""
        self.ways = replace(self.ways, fused=True)
        for module in causal_lm(self.policy).modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile()

    def forward(self, batch: TokenBatch) -> ActionOutputs:
        """Log-probability and entropy of each action token; the backbone runs once, only its states go further."""
        return score_actions(self.policy, batch, self.temperature, self.ways)

    def values(self, states_NH: Tensor) -> Tensor:
        """Values [N] of the states of a forward pass, float32."""
        if self.head is None:
            raise ValueError("this model has no value head; an algorithm that uses values sets needs_value_head")
        values_N: Tensor = self.head(states_NH.detach() if self.detach_value else states_NH)
        return values_N

    @torch.no_grad()
    def reference_log_probs(self, batch: TokenBatch, reference: Actor | None) -> Tensor:
        """Log-probabilities [N] under the reference: another model or, if None, this one with its adapter off."""
        if reference is not None:
            log_probs_N: Tensor = reference(batch).log_probs_N
            return log_probs_N
        with self.policy.disable_adapter():  # type: ignore[operator]
            own_N: Tensor = self(batch).log_probs_N
            return own_N


def score_actions(
    policy: nn.Module, batch: TokenBatch, temperature: float, ways: TileWays | None = None
) -> ActionOutputs:
    """Run a policy on a batch."""
    states_NH = action_states(policy, batch)
    log_probs_N, entropy_N = token_log_probs(causal_lm(policy), states_NH, batch.targets_N, temperature, ways)
    return ActionOutputs(log_probs_N, entropy_N, states_NH)


def action_states(policy: nn.Module, batch: TokenBatch) -> Tensor:
    """Last hidden states [N, H] just before each action token."""
    lm = causal_lm(policy)
    options: dict[str, Any] = {}
    if batch.packing is not None:
        bounds, longest = batch.packing.bounds, batch.packing.longest
        options = {
            "position_ids": batch.packing.position_ids_BL,
            "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip
    # float32 adapters on a bfloat16 model: their products are bfloat16 as well
    mixed = lm.dtype == torch.bfloat16 and policy is not lm
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=mixed):
        hidden_BLH: Tensor = lm.base_model(input_ids=batch.input_ids_BL, use_cache=False, **options).last_hidden_state
    return hidden_BLH.flatten(0, 1)[batch.before_N]
