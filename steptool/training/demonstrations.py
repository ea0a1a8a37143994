"""What a model can take of the ingested data: prompts that fit its context, demonstrations as tokens to learn from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from steptool.chat.codec import ChatCodec, Encoded
from steptool.config import Config, WarmStartConfig
from steptool.records import Query, Trajectory
from steptool.rollout.schedule import shard_positions


def texts(queries: Sequence[Query], demonstrations: Sequence[Trajectory]) -> Iterator[str]:
    """All text that a tokenizer of one's own should know."""
    for query in queries:
        yield query.instruction
        yield json.dumps(query.tools, ensure_ascii=False)
    for demonstration in demonstrations:
        for message in demonstration.messages:
            yield str(message.get("content") or "")
            yield json.dumps(message.get("tool_calls") or "", ensure_ascii=False)


def fitting(queries: Sequence[Query], codec: ChatCodec, config: Config) -> list[Query]:
    """The queries whose prompt leaves room for a turn in the context.

    Of recorded data (sources toolbench and recorded) the others are left out. Elsewhere they are an error: raises
    ValueError naming the query. Raises ValueError too if a split or a shard of a round would stay empty.
    """
    room = config.policy.max_context - config.rollout.max_new_tokens
    kept = []
    for query in queries:
        tokens = len(codec.prompt_ids([{"role": "user", "content": query.instruction}], query.tools))
        if tokens <= room:
            kept.append(query)
        elif config.data.source not in ("toolbench", "recorded"):
            raise ValueError(
                f"query '{query.query_id}': its prompt has {tokens} tokens, but policy.max_context = "
                f"{config.policy.max_context} less rollout.max_new_tokens = {config.rollout.max_new_tokens} leaves "
                f"{room}; raise max_context, shorten the prompt or offer fewer tools"
            )
    for split in ("train", config.evaluation.split):
        if not any(q.split == split for q in kept):
            raise ValueError(
                f"no query of the split '{split}' has a prompt that fits policy.max_context = "
                f"{config.policy.max_context} less rollout.max_new_tokens = {config.rollout.max_new_tokens}"
            )
    _check_shards(sum(q.split == "train" for q in kept), config)
    return kept


def lessons(queries: Sequence[Query], demonstrations: Sequence[Trajectory], codec: ChatCodec) -> list[Encoded]:
    """Demonstrations of training queries as tokens, cut as a rollout would have made them; others are left out.

    Raises ValueError naming the demonstration that cannot be cut.
    """
    tools = {q.query_id: q.tools for q in queries if q.split == "train"}
    return [_encoded(d, codec, tools[d.query_id]) for d in demonstrations if d.query_id in tools]


def tokens_seen(examples: Sequence[Encoded], cfg: WarmStartConfig) -> int:
    """Action tokens that the warm start learns from, each pass counted, at the mean of the examples."""
    mean = sum(end - start for e in examples for start, end in e.spans) / max(1, len(examples))
    return round(mean * cfg.steps * cfg.batch_size)


def _check_shards(train: int, config: Config) -> None:
    """Raise ValueError if a round would leave a shard empty."""
    rollout = config.rollout
    if 2 * rollout.shards <= min(rollout.episodes, train):
        return  # at least half of a round's queries are distinct, even where it ends one pass and begins another
    for round in range(config.ppo.rounds):
        shard_positions(train, rollout.episodes, round, config.seed, shard=rollout.shards - 1, shards=rollout.shards)


def _encoded(demonstration: Trajectory, codec: ChatCodec, tools: Sequence[dict[str, object]]) -> Encoded:
    try:
        return codec.encode(demonstration.messages, tools)
    except ValueError as error:
        raise ValueError(f"demonstration '{demonstration.trajectory_id}': {error}") from error
