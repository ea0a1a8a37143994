"""A `transformers.Trainer` whose batches are laid out before it starts.

Which sequences make an optimizer step, and which of them share a forward pass on which process, is decided once. A loss
is divided by the number of action tokens of its whole optimizer step, so that neither gradient accumulation nor the
number of processes changes the result. Checkpoints hold the trained parameters only and count once they are complete.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from steptool.models import batch
from steptool.models.value_head import ActorCritic

COMPLETE = "complete"
"""Empty file that is written into a checkpoint after everything else."""
OnCheckpoint = Callable[[], None]
"""Called by the first process once a checkpoint is complete."""


def common_arguments(folder: Path, checkpoint_every: int, seed: int) -> dict[str, Any]:
    """What every training here has in common: quiet, every step logged, no files unless checkpoints are wanted."""
    use_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "save_strategy": "steps" if checkpoint_every else "no",
        "save_steps": max(1, checkpoint_every),
        "save_total_limit": 2,
        "num_train_epochs": 1,
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


def batch_arguments(batch_size: int, micro_batch_size: int) -> dict[str, int]:
    """`batch_size` sequences per optimizer step over all processes, at most `micro_batch_size` per forward pass."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": -(-batch_size // (micro_batch_size * processes)),
    }


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward pass on one process, and all those of its optimizer step."""

    rows: batch.Indices
    step_rows: batch.Indices
    counted: bool
    """False for a stand-in that keeps the processes in step where a mini-batch has fewer sequences than slots."""


class PlannedTrainer(Trainer):  # type: ignore[misc]
    """Base of the trainers here: goes through planned optimizer steps with one policy and its value head."""

    loss_is_scaled_for_ga = True
    model: ActorCritic

    def __init__(
        self,
        model: ActorCritic,
        args: TrainingArguments,
        sequences: Sequence[batch.Spanned],
        optimizer: torch.optim.Optimizer,
        callbacks: list[TrainerCallback] | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> None:
        super().__init__(model, args, optimizers=(optimizer, None), callbacks=callbacks)
        self.on_checkpoint = on_checkpoint
        self.args._n_gpu = min(self.args.n_gpu, 1)  # one process uses one device
        self.remove_callback(PrinterCallback)
        self.sequences = sequences
        self.lengths = np.array([len(s.input_ids) for s in sequences], dtype=np.int64)
        self.action_tokens = np.array([sum(e - b for b, e in s.spans) for s in sequences], dtype=np.int64)

    @abstractmethod
    def steps(self) -> list[batch.Indices]:
        """The sequences of each optimizer step."""

    def extras(self, micro: MicroBatch) -> dict[str, Any]:
        """What the loss needs besides tokens, for one micro batch."""
        return {}

    def get_train_dataloader(self) -> DataLoader[MicroBatch]:
        """The micro batches of this process in order; nothing is drawn while training runs."""
        plan = [micro for rows in self.steps() for micro in self._micro_batches(rows)]
        return DataLoader(plan, batch_size=1, collate_fn=lambda items: self._inputs(items[0]))  # type: ignore[arg-type]

    def _micro_batches(self, rows: batch.Indices) -> list[MicroBatch]:
        processes = self.accelerator.num_processes
        slots = self.args.gradient_accumulation_steps * processes
        groups = batch.micro_batches(rows, self.lengths, self.args.per_device_train_batch_size, slots)
        own = groups[self.accelerator.process_index :: processes]
        return [MicroBatch(group if len(group) else rows[:1], rows, len(group) > 0) for group in own]

    def _inputs(self, micro: MicroBatch) -> dict[str, Any]:
        return {
            **batch.collate([self.sequences[i] for i in micro.rows]),
            "weight_N": torch.full((int(self.action_tokens[micro.rows].sum()),), float(micro.counted)),
            "tokens": float(self.action_tokens[micro.step_rows].sum()),
            **self.extras(micro),
        }

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro batch's share of the loss of its optimizer step."""
        out = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
        loss = self.loss(out, inputs) * self.accelerator.num_processes  # the processes' gradients are averaged
        return (loss, out) if return_outputs else loss

    @abstractmethod
    def loss(self, out: Any, inputs: dict[str, Any]) -> Tensor:
        """Sum over the micro batch's tokens of their losses, divided by the number of the whole optimizer step."""

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the policy's and the value head's gradients each on their own; returns the policy's norm."""
        own: ActorCritic = self.accelerator.unwrap_model(model)
        self.accelerator.clip_grad_norm_(own.head.parameters(), self.args.max_grad_norm)
        return self.accelerator.clip_grad_norm_(own.policy.parameters(), self.args.max_grad_norm)

    # ---- checkpoints: the trained parameters; optimizer and progress are written by the base class ----

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
            if self.on_checkpoint:
                self.on_checkpoint()

    def go_on(self) -> None:
        """Train; after an interruption, from the last complete checkpoint in `output_dir`."""
        last = last_checkpoint(self.args.output_dir) if self.args.save_strategy != "no" else None
        self.train(resume_from_checkpoint=last and str(last))


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The latest complete checkpoint of a folder."""
    done = [p.parent for p in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return max(done, key=lambda p: int(p.name.rsplit("-", 1)[1])) if done else None
