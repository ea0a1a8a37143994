"""Supervised fine-tuning on demonstrations, before reinforcement.

`select_fitting` finds the prompts that fit the context, and `encode_demonstrations` makes demonstrations tokens to
learn from.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from peft import PeftModel

from steptool.artifacts.metrics import update_metrics
from steptool.chat.call_format import offer_tools, to_text_answers
from steptool.chat.codec import ChatCodec
from steptool.chat.messages import read_calls
from steptool.config import Config, FinishMode, PolicyConfig, WarmStartConfig
from steptool.data.sources import open_source
from steptool.data.splits import select_shard_positions
from steptool.models.actor import Actor, Spanned
from steptool.models.adapter import NOT_MERGED, add_adapter, merge_weights, name_base, save_adapter
from steptool.models.load import load_model, load_tokenizer, save_model
from steptool.models.optimizer import make_adamw
from steptool.models.sharding import is_sharded, load_sharded_actor, save_sharded_model
from steptool.records import FINISH, Message, Metric, Query, StopReason, Trajectory
from steptool.training.processes import (
    PassLimit,
    cuts_models,
    draw_grouped_batches,
    get_processes,
    pass_on,
    share_folder,
)
from steptool.training.scores import fingerprint
from steptool.training.trainer import (
    CheckpointFolder,
    OnCheckpoint,
    OnStep,
    Settings,
    Supervised,
    Trainer,
    warm_up_and_cosine,
)

TOO_LONG = "longer than policy.max_context"
UNENCODABLE = "the chat format cannot carry it"


@dataclass(frozen=True)
class Refusal:
    """A demonstration that the model cannot learn from."""

    demonstration: Trajectory
    reason: str
    """Shared by all demonstrations with the same fault."""
    detail: str

    def to_json(self) -> str:
        """The refusal as a line of the quarantine file."""
        row: dict[str, Any] = {
            "kind": "demonstrations",
            "file": "demonstrations.parquet",
            "row": self.demonstration.trajectory_id,
        }
        row |= {"reason": self.reason, "detail": self.detail, "record": self.demonstration.messages}
        return json.dumps(row, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Lessons:
    """Demonstrations of training queries: those with tokens to learn from, and those that were left out."""

    encoded: list[Trajectory]
    refused: list[Refusal]

    def counts(self) -> dict[str, int]:
        """Numbers of demonstrations: learned from, and left out by reason."""
        reasons = Counter(f"demonstrations left out: {refusal.reason}" for refusal in self.refused)
        return {"demonstrations": len(self.encoded), **reasons}

    def add_to_quarantine(self, quarantine: Path, target: Path) -> Path:
        """Write the records that ingest set aside, and after them every demonstration that was left out."""
        lines = "".join(f"{refusal.to_json()}\n" for refusal in self.refused)
        target.write_text(quarantine.read_text(encoding="utf-8") + lines, encoding="utf-8")
        return target

    def check(self, config: WarmStartConfig) -> None:
        """Raise ValueError if there is a warm start and nothing to learn from."""
        if config.steps == 0 or self.encoded:
            return
        counts = ", ".join(f"{name} {number}" for name, number in self.counts().items())
        first = [f"; first: '{r.demonstration.trajectory_id}': {r.detail}" for r in self.refused[:1]]
        raise ValueError(
            f"the warm start has no demonstration to learn from ({counts}{''.join(first)}); give some in "
            "data.recorded_answers, raise policy.max_context, or set warm_start.steps to 0 to go without"
        )


def iterate_texts(queries: Sequence[Query], demonstrations: Sequence[Trajectory]) -> Iterator[str]:
    """All texts that a tokenizer made for these data is trained on."""
    for query in queries:
        yield query.instruction
        yield json.dumps(query.tools, ensure_ascii=False)
    for demonstration in demonstrations:
        for message in demonstration.messages:
            yield str(message.get("content") or "")
            yield json.dumps(message.get("tool_calls") or "", ensure_ascii=False)


def select_fitting(queries: Sequence[Query], codec: ChatCodec, config: Config) -> list[Query]:
    """The queries whose prompt leaves room for a turn in the context.

    The others are left out if the source allows it. If it does not, the first of them raises a ValueError that names
    it. Raises ValueError too if a split or a shard of a round would stay empty.
    """
    room = config.policy.max_context - config.rollout.max_new_tokens
    leave_out = open_source(config.data.source).may_leave_out_long_prompts
    fitting = []
    for query in queries:
        tools = offer_tools(query.tools, config.rollout.finish)
        tokens = len(codec.prompt_ids(query.first_messages, tools))
        if tokens <= room:
            fitting.append(query)
        elif not leave_out:
            raise ValueError(
                f"query '{query.query_id}': its prompt has {tokens} tokens, but policy.max_context = "
                f"{config.policy.max_context} less rollout.max_new_tokens = {config.rollout.max_new_tokens} leaves "
                f"{room}; raise max_context, shorten the prompt or offer fewer tools"
            )
    for split in ("train", config.evaluation.split):
        if not any(query.split == split for query in fitting):
            raise ValueError(
                f"no query of the split '{split}' has a prompt that fits policy.max_context = "
                f"{config.policy.max_context} less rollout.max_new_tokens = {config.rollout.max_new_tokens}"
            )
    _check_shards(sum(query.split == "train" for query in fitting), config)
    return fitting


def encode_demonstrations(
    queries: Iterable[Query],
    demonstrations: Iterable[Trajectory],
    codec: ChatCodec,
    max_context: int,
    finish: FinishMode = "tool",
) -> Lessons:
    """Demonstrations of training queries with their tokens and spans, cut as a rollout would have made them.

    Where the model ends a task in text, a Finish becomes an answer in text. A demonstration that the chat format cannot
    carry, or that has more than `max_context` tokens, is refused with its reason. Demonstrations of other queries are
    not for learning and are passed over.
    """
    tools = {q.query_id: offer_tools(q.tools, finish) for q in queries if q.split == "train"}
    lessons = Lessons([], [])
    for demonstration in demonstrations:
        if demonstration.query_id not in tools:
            continue
        try:
            messages = _end_in_text(demonstration, codec) if finish == "text" else demonstration.messages
            tokens = codec.encode(messages, tools[demonstration.query_id])
        except ValueError as error:
            lessons.refused.append(Refusal(demonstration, UNENCODABLE, str(error)))
            continue
        length = len(tokens.input_ids)
        if length > max_context:
            detail = f"{length} tokens, but policy.max_context = {max_context}"
            lessons.refused.append(Refusal(demonstration, TOO_LONG, detail))
        else:
            lessons.encoded.append(
                replace(demonstration, messages=messages, input_ids=tokens.input_ids, spans=tokens.spans)
            )
    return lessons


def _end_in_text(demonstration: Trajectory, codec: ChatCodec) -> list[Message]:
    """The messages with answers in place of calls of Finish. Raises ValueError for a Finish that gives none."""
    if demonstration.stop_reason is StopReason.GAVE_UP:
        raise ValueError("it gives up, which an answer in text cannot say")
    messages = to_text_answers(demonstration.messages, codec.format.render_answer)
    if any(call.name == FINISH for message in messages for call in read_calls(message)):
        raise ValueError("a call of Finish gives no answer, and the task does not offer the tool")
    return messages


def count_tokens(lessons: Sequence[Trajectory], config: WarmStartConfig) -> int:
    """Action tokens that the warm start learns from, each pass counted, at the mean of the lessons."""
    mean = sum(lesson.action_tokens for lesson in lessons) / max(1, len(lessons))
    return round(mean * config.steps * config.batch_size)


def _check_shards(train: int, config: Config) -> None:
    """Raise ValueError if a round would leave a shard empty."""
    shards, queries = config.rollout.shards, config.rollout.episodes // config.rollout.samples_per_query
    if 2 * shards <= min(queries, train):
        return  # at least half of a round's queries are distinct, even where it ends one pass and begins another
    for round_index in range(config.ppo.rounds):
        select_shard_positions(train, queries, round_index, config.seed, shard=shards - 1, shards=shards)


_MICRO_BATCH = 16
"""Examples per forward pass on one process, unless their tokens are limited."""
_WARM_UP = 50
"""Largest number of steps over which the learning rate rises."""


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
    moments: Literal["float32", "bfloat16"] = "float32",
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
    `gradient_checkpointing`, `sharding` and `moments` are those of the section `ppo`. `checkpoints`, a folder, and
    `on_checkpoint` are those of `train_round`.
    Raises ValueError if there are steps and no example is left.
    """
    base_dir, out_dir = Path(base_dir), Path(out_dir)
    if cfg.steps == 0:
        pass_on(base_dir, out_dir)
        return []
    fitting = [e for e in examples if e.spans and len(e.input_ids) <= policy.max_context]
    if not fitting:
        raise ValueError(
            f"none of the {len(examples)} demonstrations has assistant steps and fits into policy.max_context = "
            f"{policy.max_context} tokens (the shortest has {min((len(e.input_ids) for e in examples), default=0)}); "
            "give some in data.recorded_answers, raise max_context, or set warm_start.steps to 0 to go without"
        )
    is_cut = cuts_models(sharding)
    if is_cut:
        out_dir = share_folder(out_dir)
        checkpoints = share_folder(Path(checkpoints)) if checkpoints else None
    actor = _load_actor(base_dir, policy, seed, is_cut=is_cut)
    if gradient_checkpointing:
        actor.checkpoint_activations()
    optimizer = make_adamw(actor.policy, cfg.learning_rate, weight_decay=0.01, moments=moments)
    limit = PassLimit(_MICRO_BATCH, tokens_per_pass, actor.packed)
    settings = Settings(limit, 1.0, warm_up_and_cosine(cfg.steps, min(_WARM_UP, cfg.steps // 10)))
    checkpoint_folder = None
    if checkpoints:
        checkpoint_folder = CheckpointFolder(Path(checkpoints), checkpoint_every, fingerprint(fitting), on_checkpoint)
    trainer = Trainer(actor, optimizer, Supervised(), fitting, settings, checkpoint_folder, on_step)
    log = trainer.train(draw_grouped_batches(trainer.lengths, cfg.batch_size, cfg.steps, seed))
    save_warm_start(actor, base_dir, out_dir)
    metrics = update_metrics(log, "warm_start", -1)
    left_out = float(len(examples) - len(fitting))
    return [*metrics, Metric("warm_start", -1, cfg.steps - 1, "left_out", left_out)]


def _load_actor(base_dir: Path, policy: PolicyConfig, seed: int, *, is_cut: bool) -> Actor:
    """The model of a folder, whole or this process's part of it, with a fresh adapter where LoRA is on."""
    if is_cut:
        actor = load_sharded_actor(base_dir, get_processes().num_processes, trained=not policy.lora_rank)
    else:
        actor = Actor(load_model(base_dir))
    if policy.lora_rank:
        actor.policy = add_adapter(actor.policy, policy, seed).eval()
    return actor


def save_warm_start(actor: Actor, base_dir: Path, out_dir: Path) -> None:
    """Write a plain model folder, with an adapter merged into the weights."""
    adapted = isinstance(actor.policy, PeftModel)
    if is_sharded(actor) and not adapted:
        save_sharded_model(actor.policy, base_dir, out_dir)
    elif get_processes().is_main_process and is_sharded(actor):
        with TemporaryDirectory() as adapter:
            save_adapter(actor.policy, name_base(base_dir), Path(adapter))
            shutil.copytree(base_dir, out_dir, ignore=NOT_MERGED, dirs_exist_ok=True)
            merge_weights(Path(adapter), base_dir, out_dir)
    elif get_processes().is_main_process:
        merged: Any = actor.policy.merge_and_unload() if adapted else actor.policy  # type: ignore[operator]
        save_model(merged, "auto", out_dir)
        load_tokenizer(base_dir).save_pretrained(out_dir)
    get_processes().wait_for_everyone()
