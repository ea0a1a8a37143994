"""Supervised fine-tuning on demonstrations, before reinforcement."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from steptool.artifacts.metrics import update_metrics
from steptool.config import PolicyConfig, WarmStartConfig
from steptool.models.actor import Actor
from steptool.models.adapter import new_adapter
from steptool.models.batch import Spanned
from steptool.models.load import load_model, load_tokenizer
from steptool.models.optimizer import adamw
from steptool.records import Metric
from steptool.training.algorithms.base import Supervised
from steptool.training.checkpoints import CheckpointFolder, OnCheckpoint
from steptool.training.plan import PassLimit, grouped_batches
from steptool.training.processes import processes
from steptool.training.scores import fingerprint
from steptool.training.trainer import OnStep, Settings, Trainer, warm_up_and_cosine

_MICRO_BATCH = 16
_WARM_UP = 50


def warm_start(
    base_dir: str | Path,
    examples: Sequence[Spanned],
    cfg: WarmStartConfig,
    policy: PolicyConfig,
    seed: int,
    out_dir: str | Path,
    *,
    tokens_per_pass: int = 0,
    gradient_checkpointing: bool = False,
    on_step: OnStep | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 50,
    on_checkpoint: OnCheckpoint | None = None,
) -> list[Metric]:
    """Fine-tune the model of `base_dir` for `cfg.steps` optimizer steps; returns its metrics.

    Only tokens inside the spans are learned. AdamW (betas .9 and .98, weight decay .01), gradients clipped at norm 1,
    a tenth of the steps (50 at most) to warm up, then a cosine down to a tenth of the learning rate. Examples beyond
    `policy.max_context` tokens are left out and counted (metric `left_out`). `out_dir` becomes a plain model folder;
    with LoRA the adapter is merged. With no steps the model is passed on as it is. `tokens_per_pass` and
    `gradient_checkpointing` are those of the section `ppo`. `checkpoints`, a folder, and `on_checkpoint`: see
    `train_round`.
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
    trained = new_adapter(model, policy, seed) if policy.lora_rank else model
    optimizer = adamw(trained, cfg.learning_rate, weight_decay=0.01)
    actor = Actor(trained)
    if gradient_checkpointing:
        actor.checkpoint_activations()
    limit = PassLimit(_MICRO_BATCH, tokens_per_pass, actor.packed)
    settings = Settings(limit, 1.0, warm_up_and_cosine(cfg.steps, min(_WARM_UP, cfg.steps // 10)))
    kept = None
    if checkpoints:
        kept = CheckpointFolder(Path(checkpoints), checkpoint_every, fingerprint(fitting), on_checkpoint)
    trainer = Trainer(actor, optimizer, Supervised(), fitting, settings, kept, on_step)
    log = trainer.train(grouped_batches(trainer.lengths, cfg.batch_size, cfg.steps, seed))
    if processes().is_main_process:
        merged: Any = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
        merged.save_pretrained(out_dir)
        load_tokenizer(base_dir).save_pretrained(out_dir)
    processes().wait_for_everyone()
    metrics = update_metrics(log, "warm_start", -1)
    left_out = float(len(examples) - len(fitting))
    return [*metrics, Metric("warm_start", -1, cfg.steps - 1, "left_out", left_out)]
