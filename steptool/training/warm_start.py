"""Supervised fine-tuning on demonstrations, before reinforcement."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from peft import PeftModel

from steptool.artifacts.metrics import update_metrics
from steptool.config import PolicyConfig, WarmStartConfig
from steptool.models.actor import Actor
from steptool.models.adapter import NOT_MERGED, merge_weights, name_base, new_adapter, save_adapter
from steptool.models.batch import Spanned
from steptool.models.load import load_model, load_tokenizer
from steptool.models.optimizer import adamw
from steptool.models.sharding import is_sharded, load_sharded_actor, save_sharded_model
from steptool.records import Metric
from steptool.training.algorithms.base import Supervised
from steptool.training.checkpoints import CheckpointFolder, OnCheckpoint
from steptool.training.plan import PassLimit, grouped_batches
from steptool.training.processes import cuts_models, processes, share_folder
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
    sharding: Literal["ddp", "fsdp"] = "ddp",
    on_step: OnStep | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 50,
    on_checkpoint: OnCheckpoint | None = None,
) -> list[Metric]:
    """Fine-tune the model of `base_dir` for `cfg.steps` optimizer steps; returns its metrics.

    Only tokens inside the spans are learned. AdamW (betas .9 and .98, weight decay .01), gradients clipped at norm 1,
    a tenth of the steps (50 at most) to warm up, then a cosine down to a tenth of the learning rate. Examples beyond
    `policy.max_context` tokens are left out and counted (metric `left_out`). `out_dir` becomes a plain model folder;
    with LoRA the adapter is merged. With no steps the model is passed on as it is. `tokens_per_pass`,
    `gradient_checkpointing` and `sharding` are those of the section `ppo`. `checkpoints`, a folder, and `on_checkpoint`
    are those of `train_round`.
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
    cut = cuts_models(sharding)
    if cut:
        out_dir = share_folder(out_dir)
        checkpoints = share_folder(Path(checkpoints)) if checkpoints else None
        actor = load_sharded_actor(base_dir, processes().num_processes, trained=not policy.lora_rank)
    else:
        actor = Actor(load_model(base_dir))
    if policy.lora_rank:
        actor.policy = new_adapter(actor.policy, policy, seed).eval()
    optimizer = adamw(actor.policy, cfg.learning_rate, weight_decay=0.01)
    if gradient_checkpointing:
        actor.checkpoint_activations()
    limit = PassLimit(_MICRO_BATCH, tokens_per_pass, actor.packed)
    settings = Settings(limit, 1.0, warm_up_and_cosine(cfg.steps, min(_WARM_UP, cfg.steps // 10)))
    checkpoint_folder = None
    if checkpoints:
        checkpoint_folder = CheckpointFolder(Path(checkpoints), checkpoint_every, fingerprint(fitting), on_checkpoint)
    trainer = Trainer(actor, optimizer, Supervised(), fitting, settings, checkpoint_folder, on_step)
    log = trainer.train(grouped_batches(trainer.lengths, cfg.batch_size, cfg.steps, seed))
    save_warm_start(actor, base_dir, out_dir)
    metrics = update_metrics(log, "warm_start", -1)
    left_out = float(len(examples) - len(fitting))
    return [*metrics, Metric("warm_start", -1, cfg.steps - 1, "left_out", left_out)]


def save_warm_start(actor: Actor, base_dir: Path, out_dir: Path) -> None:
    """Write a plain model folder, with an adapter merged into the weights."""
    adapted = isinstance(actor.policy, PeftModel)
    if is_sharded(actor) and not adapted:
        save_sharded_model(actor.policy, base_dir, out_dir)
    elif processes().is_main_process and is_sharded(actor):
        with TemporaryDirectory() as adapter:
            save_adapter(actor.policy, name_base(base_dir), Path(adapter))
            shutil.copytree(base_dir, out_dir, ignore=NOT_MERGED, dirs_exist_ok=True)
            merge_weights(Path(adapter), base_dir, out_dir)
    elif processes().is_main_process:
        merged: Any = actor.policy.merge_and_unload() if adapted else actor.policy  # type: ignore[operator]
        merged.save_pretrained(out_dir)
        load_tokenizer(base_dir).save_pretrained(out_dir)
    processes().wait_for_everyone()
