"""Step-grained PPO: one round of updates on the trajectories that the current policy has just made.

The models score every action token once; `credit` turns step rewards, values and the divergence from the reference into
advantages; then a few shuffled passes minimise, over action tokens alone,

    E[ -min(rho A, clip(rho) A) ] + value_coef * E[ max((V - R)^2, (clip(V) - R)^2) / 2 ].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from steptool.config import Config, CreditConfig
from steptool.models import batch
from steptool.models import folder as model_folder
from steptool.models.logprobs import causal_lm, token_log_probs
from steptool.models.value_head import ActionOutputs, ActorCritic, action_states
from steptool.training import losses
from steptool.training.experience import Episodes, Experience, Scores, experience
from steptool.training.metric_accumulator import MetricAccumulator
from steptool.training.planned import MicroBatch, OnCheckpoint, PlannedTrainer, batch_arguments, common_arguments

SCORES = "scores.safetensors"


@dataclass
class StepPPOArguments(TrainingArguments):  # type: ignore[misc]
    """TrainingArguments of one round. `learning_rate` is the policy's."""

    kl_coef: float = field(default=0.02, metadata={"help": "weight of the per-token KL penalty in the rewards"})
    clip: float = field(default=0.2, metadata={"help": "clip range of the probability ratio"})
    clip_value: float = field(default=0.2, metadata={"help": "clip range of the change of a value"})
    value_coef: float = field(default=1.0, metadata={"help": "weight of the value loss"})
    value_learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the value head"})
    train_policy: bool = field(default=True, metadata={"help": "false: only the value head learns"})
    batch_size: int = field(default=24, metadata={"help": "trajectories per optimizer step, over all processes"})
    ppo_epochs: int = field(default=2, metadata={"help": "passes over the trajectories"})

    @classmethod
    def of_round(cls, config: Config, round: int, folder: Path, checkpoint_every: int) -> StepPPOArguments:
        """Arguments of one round; checkpoints go into `folder` every so many optimizer steps (0: none)."""
        ppo = config.ppo
        return cls(
            **common_arguments(folder, checkpoint_every, config.seed + round),
            **batch_arguments(ppo.batch_size, ppo.micro_batch_size),
            lr_scheduler_type="constant",
            learning_rate=learning_rate(config, round),
            max_grad_norm=ppo.max_grad_norm,
            kl_coef=ppo.kl_coef,
            clip=ppo.clip,
            clip_value=ppo.clip_value,
            value_coef=ppo.value_coef,
            value_learning_rate=ppo.value_learning_rate,
            train_policy=round >= ppo.value_warmup_rounds,
            batch_size=ppo.batch_size,
            ppo_epochs=ppo.epochs,
        )


def learning_rate(config: Config, round: int) -> float:
    """lr * (1 - (1 - f) * round / (rounds - 1)): linear from lr to the share f of it in the last round."""
    share = round / max(1, config.ppo.rounds - 1)
    return config.ppo.learning_rate * (1.0 - (1.0 - config.ppo.final_learning_rate) * min(1.0, share))


class StepPPOTrainer(PlannedTrainer):
    """One round of StepPPO on `transformers.Trainer`.

    `reference` is the model that the policy is held to; None: the policy itself with its adapter switched off.
    """

    args: StepPPOArguments

    def __init__(
        self,
        model: ActorCritic,
        args: StepPPOArguments,
        episodes: Episodes,
        credit: CreditConfig,
        reference: PreTrainedModel | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> None:
        self.adamw = model_folder.adamw(model.policy, args.learning_rate, model.head, args.value_learning_rate)
        if not args.train_policy:
            model.policy.requires_grad_(False)
        super().__init__(model, args, episodes.trajectories, self.adamw, on_checkpoint=on_checkpoint)
        self.episodes = episodes
        self.credit = credit
        self.reference = reference
        self.tally = MetricAccumulator(self.accelerator)
        self._experience: Experience | None = None

    def run_round(self) -> Experience:
        """Score, then train; after an interruption, go on from the last complete checkpoint in `output_dir`."""
        saves = self.args.save_strategy != "no"
        self._experience = experience(self.episodes, self._scores(saves), self.args.kl_coef, self.credit)
        self.go_on()
        return self._experience

    def _scores(self, saves: bool) -> Scores:
        path, fingerprint = Path(self.args.output_dir) / SCORES, self.episodes.fingerprint
        if saves and path.is_file():
            return Scores.load(path, fingerprint)
        scores = self.score()
        if saves and self.args.should_save:
            scores.save(path, fingerprint)
        self.accelerator.wait_for_everyone()
        return scores

    @torch.no_grad()
    def score(self) -> Scores:
        """Log-probabilities under policy and reference, and values, of all action tokens; shared between processes."""
        device = self.accelerator.device
        self.model.eval()
        if self.reference is not None:
            self.reference.to(device).eval()
        scores_3N = torch.zeros(3, self.episodes.total, device=device)
        starts = np.concatenate([[0], np.cumsum(self.action_tokens)])
        for rows in self._scoring_batches():
            places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in rows])
            inputs = batch.collate([self.sequences[i] for i in rows])
            tensors = {name: tensor.to(device) for name, tensor in inputs.items()}
            with self.accelerator.autocast():
                out = self.model(**tensors)
                reference_n = self._reference_log_probs(**tensors)
            scores_3N[:, torch.from_numpy(places).to(device)] = torch.stack([out.log_probs, reference_n, out.values])
        # every process has filled its own places and left zeros elsewhere
        return Scores(*self.accelerator.reduce(scores_3N, "sum").cpu().numpy())

    def _scoring_batches(self) -> list[batch.Indices]:
        order = np.argsort(self.lengths, kind="stable")
        size = self.args.per_device_train_batch_size
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        return groups[self.accelerator.process_index :: self.accelerator.num_processes]

    def _reference_log_probs(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        if self.reference is not None:
            states = action_states(self.reference, input_ids, labels)
            return token_log_probs(self.reference, *states, self.model.temperature)[0]
        policy: Any = self.model.policy
        with policy.disable_adapter():
            states = action_states(policy, input_ids, labels)
            return token_log_probs(causal_lm(policy), *states, self.model.temperature)[0]

    def steps(self) -> list[batch.Indices]:
        """`ppo_epochs` shuffled passes over the trajectories."""
        return batch.mini_batches(len(self.lengths), self.args.batch_size, self.args.ppo_epochs, self.args.seed)

    def extras(self, micro: MicroBatch) -> dict[str, Any]:
        """What is known of the action tokens [N] of the micro batch, and the number of value targets of its step."""
        known = self._experience
        if known is None:
            raise RuntimeError("nothing to train on yet: call run_round(), which scores the trajectories first")
        packed = {
            name: torch.cat([getattr(known, name)[i] for i in micro.rows])
            for name in ("old_log_probs", "reference", "old_values", "advantages", "returns", "value_mask")
        }
        packed["value_mask"] *= float(micro.counted)
        return {**packed, "value_tokens": float(sum(known.value_mask[i].sum() for i in micro.step_rows))}

    def loss(self, out: ActionOutputs, inputs: dict[str, Any]) -> Tensor:
        """Clipped policy loss per action token and clipped value loss per value target."""
        args = self.args
        ratio_N = torch.exp(out.log_probs - inputs["old_log_probs"])
        policy_N = losses.policy_loss(ratio_N, inputs["advantages"], args.clip) * inputs["weight_N"]
        value_N = losses.value_loss(out.values, inputs["old_values"], inputs["returns"], args.clip_value)
        value_N = value_N * inputs["value_mask"]
        self.tally.add(policy_N, value_N, ratio_N, out, inputs, args.clip)
        loss: Tensor = args.value_coef * value_N.sum() / inputs["value_tokens"]
        return loss + policy_N.sum() / inputs["tokens"] if args.train_policy else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was tallied over the optimizer step."""
        if "learning_rate" in logs:
            logs = {**logs, **self.tally.read()}
        super().log(logs, start_time)
