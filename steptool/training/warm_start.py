"""Supervised fine-tuning on demonstrations, before reinforcement."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from transformers import TrainingArguments

from steptool.config import PolicyConfig, WarmStartConfig
from steptool.contracts.columns import Row
from steptool.models import folder as model_folder
from steptool.models.batch import Spanned
from steptool.models.load import load_model, load_tokenizer
from steptool.training.algorithms.supervised import OnStep, SupervisedTrainer
from steptool.training.metrics import metric_rows
from steptool.training.planned import OnCheckpoint, batch_arguments, common_arguments

_MICRO_BATCH = 16
_SCHEDULES = {"cosine": ("cosine_with_min_lr", {"min_lr_rate": 0.1}), "linear": ("linear", {})}


def warm_start(
    base_dir: str | Path,
    examples: Sequence[Spanned],
    cfg: WarmStartConfig,
    policy: PolicyConfig,
    seed: int,
    out_dir: str | Path,
    *,
    schedule: Literal["cosine", "linear"] = "cosine",
    on_step: OnStep | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 50,
    on_checkpoint: OnCheckpoint | None = None,
) -> list[Row]:
    """Fine-tune the model of `base_dir` for `cfg.steps` optimizer steps; returns rows of METRICS.

    Only tokens inside the spans are learned. AdamW (betas .9 and .98, weight decay .01), gradients clipped at norm 1,
    a tenth of the steps (50 at most) to warm up, then the schedule. Examples beyond `policy.max_context` tokens are
    left out and counted (metric `left_out`). `out_dir` becomes a plain model folder; with LoRA the adapter is merged.
    With no steps the model is passed on as it is. `checkpoints`, a folder, and `on_checkpoint`: see `train_round`.
    Raises ValueError if there are steps and no example is left.
    """
    base_dir, out_dir = Path(base_dir), Path(out_dir)
    if cfg.steps == 0:
        shutil.copytree(base_dir, out_dir, dirs_exist_ok=True)
        return []
    fitting = [e for e in examples if e.spans and len(e.input_ids) <= policy.max_context]
    if not fitting:
        raise ValueError(
            f"none of the {len(examples)} demonstrations has assistant steps and fits into policy.max_context = "
            f"{policy.max_context} tokens (the shortest has {min((len(e.input_ids) for e in examples), default=0)}); "
            "give some in data.recorded_answers, raise max_context, or set warm_start.steps to 0 to go without"
        )
    model = load_model(base_dir)
    trained = model_folder.new_adapter(model, policy, seed) if policy.lora_rank else model
    kind, options = _SCHEDULES[schedule]
    args = TrainingArguments(
        **common_arguments(Path(checkpoints or out_dir), checkpoint_every if checkpoints else 0, seed),
        **batch_arguments(cfg.batch_size, min(cfg.batch_size, _MICRO_BATCH)),
        max_steps=cfg.steps,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=options,
        warmup_steps=min(50, cfg.steps // 10),
        learning_rate=cfg.learning_rate,
        max_grad_norm=1.0,
    )
    optimizer = model_folder.adamw(trained, cfg.learning_rate, weight_decay=0.01)
    trainer = SupervisedTrainer(trained, args, fitting, optimizer, cfg.batch_size, on_step, on_checkpoint)
    trainer.go_on()
    if trainer.args.should_save:
        merged: Any = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
        merged.save_pretrained(out_dir)
        load_tokenizer(base_dir).save_pretrained(out_dir)
    trainer.accelerator.wait_for_everyone()
    rows = metric_rows(trainer.state.log_history, "warm_start", -1)
    left_out = float(len(examples) - len(fitting))
    return [*rows, {"stage": "warm_start", "round": -1, "update": cfg.steps - 1, "name": "left_out", "value": left_out}]
