"""Supervised learning: -log p of the model's own tokens."""

from __future__ import annotations

from steptool.models.actor import Actor
from steptool.training.algorithms.base import ForwardPass, LossTerms, Objective


class Supervised(Objective):
    """Mean negative log-likelihood of the action tokens of an optimizer step (nats per token)."""

    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """The pass's share of it."""
        return LossTerms(-actor(part.batch).log_probs_N.sum() / float(len(part.step_places_n)))
