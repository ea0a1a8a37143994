"""What a model can take of the ingested data: prompts that fit its context, demonstrations as tokens to learn from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steptool.chat.codec import ChatCodec
from steptool.config import Config, WarmStartConfig
from steptool.data.sources.base import open_source
from steptool.records import Query, Trajectory
from steptool.rollout.schedule import shard_positions

TOO_LONG = "longer than policy.max_context"
UNENCODABLE = "the chat format cannot carry it"


@dataclass(frozen=True)
class Refusal:
    """A demonstration that the model cannot learn from."""

    demonstration: Trajectory
    reason: str
    """Shared by all demonstrations with the same fault."""
    detail: str

    def as_json(self) -> str:
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
        lines = "".join(f"{refusal.as_json()}\n" for refusal in self.refused)
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
    """All text that a tokenizer of one's own should know."""
    for query in queries:
        yield query.instruction
        yield json.dumps(query.tools, ensure_ascii=False)
    for demonstration in demonstrations:
        for message in demonstration.messages:
            yield str(message.get("content") or "")
            yield json.dumps(message.get("tool_calls") or "", ensure_ascii=False)


def select_fitting(queries: Sequence[Query], codec: ChatCodec, config: Config) -> list[Query]:
    """The queries whose prompt leaves room for a turn in the context.

    Where the source allows it the others are left out. Elsewhere they are an error: raises ValueError naming the query.
    Raises ValueError too if a split or a shard of a round would stay empty.
    """
    room = config.policy.max_context - config.rollout.max_new_tokens
    leave_out = open_source(config.data.source).may_leave_out_long_prompts
    fitting = []
    for query in queries:
        tokens = len(codec.prompt_ids([{"role": "user", "content": query.instruction}], query.tools))
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
    queries: Iterable[Query], demonstrations: Iterable[Trajectory], codec: ChatCodec, max_context: int
) -> Lessons:
    """Demonstrations of training queries with their tokens and spans, cut as a rollout would have made them.

    One that the chat format cannot carry, or that has more than `max_context` tokens, is refused with its reason.
    Demonstrations of other queries are not for learning and are passed over.
    """
    tools = {query.query_id: query.tools for query in queries if query.split == "train"}
    lessons = Lessons([], [])
    for demonstration in demonstrations:
        if demonstration.query_id not in tools:
            continue
        try:
            tokens = codec.encode(demonstration.messages, tools[demonstration.query_id])
        except ValueError as error:
            lessons.refused.append(Refusal(demonstration, UNENCODABLE, str(error)))
            continue
        length = len(tokens.input_ids)
        if length > max_context:
            detail = f"{length} tokens, but policy.max_context = {max_context}"
            lessons.refused.append(Refusal(demonstration, TOO_LONG, detail))
        else:
            lessons.encoded.append(replace(demonstration, input_ids=tokens.input_ids, spans=tokens.spans))
    return lessons


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
        shard_positions(train, queries, round_index, config.seed, shard=shards - 1, shards=shards)
