"""Step-grained PPO: one round of updates on the trajectories that the current policy has just made.

The models score every action token once; `credit` turns step rewards, values and the divergence from the reference into
advantages; then a few shuffled passes minimise, over action tokens alone,

    E[ -min(rho A, clip(rho) A) ] + value_coef * E[ max((V - R)^2, (clip(V) - R)^2) / 2 ].

Each mean is over the action tokens of the whole optimizer step: of all its micro batches on all processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from steptool.config import Config, CreditConfig
from steptool.training import batch, losses, model_folder
from steptool.training.experience import Episodes, Experience, Scores, experience
from steptool.training.logprobs import causal_lm, token_log_probs
from steptool.training.tally import Tally
from steptool.training.value_head import ActorCritic, action_states

SCORES = "scores.safetensors"
COMPLETE = "complete"
"""Empty file that is written into a checkpoint after everything else."""


@dataclass
class StepPPOArguments(TrainingArguments):
    """TrainingArguments of one round. `learning_rate` is the policy's."""

    kl_coef: float = field(default=0.02, metadata={"help": "weight of the per-token KL penalty in the rewards"})
    clip: float = field(default=0.2, metadata={"help": "clip range of the probability ratio"})
    clip_value: float = field(default=0.2, metadata={"help": "clip range of the change of a value"})
    value_coef: float = field(default=1.0, metadata={"help": "weight of the value loss"})
    value_learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the value head"})
    train_policy: bool = field(default=True, metadata={"help": "false: only the value head learns"})
    batch_size: int = field(default=24, metadata={"help": "trajectories per optimizer step, over all processes"})
    ppo_epochs: int = field(default=2, metadata={"help": "passes over the trajectories"})

    def __post_init__(self) -> None:
        """Check the arguments; one process uses one device."""
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)

    @classmethod
    def of_round(cls, config: Config, round: int, folder: Path, checkpoint_every: int) -> StepPPOArguments:
        """Arguments of one round; checkpoints go into `folder` every so many optimizer steps (0: none)."""
        ppo = config.ppo
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            **plain_arguments(folder, checkpoint_every, config.seed + round),
            learning_rate=learning_rate(config, round),
            max_grad_norm=ppo.max_grad_norm,
            per_device_train_batch_size=ppo.micro_batch_size,
            gradient_accumulation_steps=-(-ppo.batch_size // (ppo.micro_batch_size * processes)),
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


def plain_arguments(folder: Path, checkpoint_every: int, seed: int) -> dict[str, Any]:
    """What every training here has in common: quiet, every step logged, no files unless checkpoints are wanted."""
    use_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "save_strategy": "steps" if checkpoint_every else "no",
        "save_steps": max(1, checkpoint_every),
        "save_total_limit": 2,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": use_cpu,
        "ddp_backend": "gloo" if use_cpu and "WORLD_SIZE" in os.environ else None,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }


@dataclass(frozen=True)
class MicroBatch:
    """Trajectories of one forward pass on one process, and what the losses of its optimizer step are divided by."""

    rows: tuple[int, ...]
    counted: bool
    """False for a stand-in that keeps the processes in step where a mini-batch has fewer trajectories than slots."""
    tokens: float
    """Action tokens of the optimizer step, over all micro batches and processes."""
    value_tokens: float
    """Those of them that have a value target."""


class StepPPOTrainer(Trainer):
    """One round of StepPPO on `transformers.Trainer`.

    `reference` is the model that the policy is held to; None: the policy itself with its adapter switched off.
    """

    loss_is_scaled_for_ga = True
    model: ActorCritic
    args: StepPPOArguments

    def __init__(
        self,
        model: ActorCritic,
        args: StepPPOArguments,
        episodes: Episodes,
        credit: CreditConfig,
        reference: PreTrainedModel | None = None,
    ) -> None:
        self.adamw = model_folder.adamw(model.policy, args.learning_rate, model.head, args.value_learning_rate)
        if not args.train_policy:
            model.policy.requires_grad_(False)
        super().__init__(model, args, optimizers=(self.adamw, None))
        self.remove_callback(PrinterCallback)
        self.episodes = episodes
        self.credit = credit
        self.reference = reference
        self.experience: Experience | None = None
        self.tally = Tally(self.accelerator)

    def run_round(self) -> Experience:
        """Score, then train; after an interruption, go on from the last complete checkpoint in `output_dir`."""
        saves = self.args.save_strategy != "no"
        scores_path = Path(self.args.output_dir) / SCORES
        fingerprint = self.episodes.fingerprint
        if saves and scores_path.is_file():
            scores = Scores.load(scores_path, fingerprint)
        else:
            scores = self.score()
            if saves and self.args.should_save:
                scores.save(scores_path, fingerprint)
            self.accelerator.wait_for_everyone()
        self.experience = experience(self.episodes, scores, self.args.kl_coef, self.credit)
        self.train(resume_from_checkpoint=_last_checkpoint(Path(self.args.output_dir)) if saves else None)
        return self.experience

    # ---- scoring: once per round, shared between the processes ----

    @torch.no_grad()
    def score(self) -> Scores:
        """Log-probabilities under policy and reference, and values, of all action tokens of the round."""
        device = self.accelerator.device
        self.model.eval()
        if self.reference is not None:
            self.reference.to(device).eval()
        scores_3N = torch.zeros(3, self.episodes.total, device=device)
        starts = np.concatenate([[0], np.cumsum(self.episodes.action_tokens)])
        for rows in self._scoring_batches():
            places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in rows])
            inputs = batch.collate([self.episodes.trajectories[i] for i in rows])
            tensors = {name: tensor.to(device) for name, tensor in inputs.items()}
            with self.accelerator.autocast():
                out = self.model(**tensors)
                reference_n = self._reference_log_probs(**tensors)
            scores_3N[:, torch.from_numpy(places).to(device)] = torch.stack([out.log_probs, reference_n, out.values])
        # every process has filled its own places and left zeros elsewhere
        log_probs_N, reference_N, values_N = self.accelerator.reduce(scores_3N, "sum").cpu().numpy()
        return Scores(log_probs_N, reference_N, values_N)

    def _scoring_batches(self) -> list[batch.Indices]:
        order = np.argsort(self.episodes.lengths, kind="stable")
        size = self.args.per_device_train_batch_size
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        return groups[self.accelerator.process_index :: self.accelerator.num_processes]

    def _reference_log_probs(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        if self.reference is not None:
            return token_log_probs(self.reference, *action_states(self.reference, input_ids, labels))[0]
        policy: Any = self.model.policy
        with policy.disable_adapter():
            return token_log_probs(causal_lm(policy), *action_states(policy, input_ids, labels))[0]

    # ---- updates ----

    def get_train_dataloader(self) -> DataLoader[MicroBatch]:
        """The micro batches of this process in order; nothing is drawn while training runs."""
        return DataLoader(self._plan(), batch_size=1, collate_fn=lambda items: self._collate(items[0]))  # type: ignore[arg-type]

    def _plan(self) -> list[MicroBatch]:
        args, processes = self.args, self.accelerator.num_processes
        slots = args.gradient_accumulation_steps * processes
        plan = []
        for rows in batch.mini_batches(len(self.episodes.lengths), args.batch_size, args.ppo_epochs, args.seed):
            groups = batch.micro_batches(rows, self.episodes.lengths, args.per_device_train_batch_size, slots)
            tokens = float(self.episodes.action_tokens[rows].sum())
            value_tokens = float(sum(self._experience.value_mask[i].sum() for i in rows))
            for group in groups[self.accelerator.process_index :: processes]:
                own = group if len(group) else rows[:1]
                plan.append(MicroBatch(tuple(map(int, own)), len(group) > 0, tokens, value_tokens))
        return plan

    @property
    def _experience(self) -> Experience:
        if self.experience is None:
            raise RuntimeError("nothing to train on yet: call run_round(), which scores the trajectories first")
        return self.experience

    def _collate(self, micro: MicroBatch) -> dict[str, Any]:
        known = self._experience
        packed = {
            name: torch.cat([getattr(known, name)[i] for i in micro.rows])
            for name in ("old_log_probs", "reference", "old_values", "advantages", "returns", "value_mask")
        }
        weight = float(micro.counted)
        return {
            **batch.collate([self.episodes.trajectories[i] for i in micro.rows]),
            **packed,
            "value_mask": packed["value_mask"] * weight,
            "policy_mask": torch.full_like(packed["value_mask"], weight),
            "tokens": micro.tokens,
            "value_tokens": micro.value_tokens,
        }

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro batch's share of the loss of its optimizer step."""
        args = self.args
        out = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
        ratio_N = torch.exp(out.log_probs - inputs["old_log_probs"])
        policy_N = losses.policy_loss(ratio_N, inputs["advantages"], args.clip) * inputs["policy_mask"]
        value_N = losses.value_loss(out.values, inputs["old_values"], inputs["returns"], args.clip_value)
        value_N = value_N * inputs["value_mask"]
        loss = args.value_coef * value_N.sum() / inputs["value_tokens"]
        if args.train_policy:
            loss = loss + policy_N.sum() / inputs["tokens"]
        self.tally.add(policy_N, value_N, ratio_N, out, inputs, args.clip)
        loss = loss * self.accelerator.num_processes  # the processes' gradients are averaged
        return (loss, out) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the policy's and the value head's gradients each on their own; returns the policy's norm."""
        own: ActorCritic = self.accelerator.unwrap_model(model)
        self.accelerator.clip_grad_norm_(own.head.parameters(), self.args.max_grad_norm)
        return self.accelerator.clip_grad_norm_(own.policy.parameters(), self.args.max_grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was tallied over the optimizer step."""
        if "learning_rate" in logs:
            logs = {**logs, **self.tally.read()}
        super().log(logs, start_time)

    # ---- checkpoints: the trained parameters; the rest is written by the base class ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            trained = {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}
            save_file(trained, folder / "trained.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in load_file(Path(resume_from_checkpoint) / "trained.safetensors").items():
                parameters[name].copy_(value)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()


def _last_checkpoint(folder: Path) -> str | None:
    done: Sequence[Path] = [p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(done, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if done else None
