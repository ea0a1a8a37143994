"""Supervised learning on token sequences with spans: -log p of the tokens inside the spans.

On `transformers.Trainer` rather than TRL's SFTTrainer, which takes such data too, but on a CPU with a small vocabulary
needs 1.8 times the time for a step (its kernel computes the logits twice, and it builds attention masks for padding
that causal attention cannot see).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from steptool.models import batch
from steptool.models.logprobs import causal_lm
from steptool.models.value_head import ActionOutputs, ActorCritic, ValueHead
from steptool.training.planned import OnCheckpoint, PlannedTrainer

OnStep = Callable[[int, float], None]
"""Called after each optimizer step with the number of steps done and the loss (nats per token)."""


class SupervisedTrainer(PlannedTrainer):
    """`args.max_steps` optimizer steps on batches of `batch_size` sequences of similar length."""

    def __init__(
        self,
        policy: nn.Module,
        args: TrainingArguments,
        sequences: Sequence[batch.Spanned],
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        on_step: OnStep | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> None:
        head = ValueHead(causal_lm(policy).config.get_text_config().hidden_size)
        head.requires_grad_(False)
        actor = ActorCritic(policy, head, detach_value=True)
        super().__init__(actor, args, sequences, optimizer, [_Progress(on_step)] if on_step else None, on_checkpoint)
        self.batch_size = batch_size

    def steps(self) -> list[batch.Indices]:
        """Shuffled passes until there are enough steps."""
        return batch.grouped_batches(self.lengths, self.batch_size, self.args.max_steps, self.args.seed)

    def loss(self, out: ActionOutputs, inputs: dict[str, Any]) -> Tensor:
        """Negative log-likelihood per action token."""
        loss: Tensor = -(out.log_probs * inputs["weight_N"]).sum() / inputs["tokens"]
        return loss


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._on_step(state.global_step, logs["loss"])
