"""A trial before a run: the model plays turns, and their log-probabilities must equal those of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec
from steptool.chat.finish import offered_tools
from steptool.config import Config, FinishMode
from steptool.models.actor import collate, score_actions
from steptool.models.load import ModelError
from steptool.models.logprobs import causal_lm
from steptool.policies.kv_cache import check_context
from steptool.policies.sampler import BatchSampler, Feed
from steptool.records import Query

TOLERANCES = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Nats by which the log-probabilities of a turn may differ from those of the training path: rounding, and no more. The
largest difference of a token counts in float32, in bfloat16 the mean one."""
_TURNS = 2


@dataclass
class _Row:
    """A conversation of the trial."""

    input_ids: list[int]
    spans: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0


def try_model(model: PreTrainedModel, codec: ChatCodec, queries: Sequence[Query], config: Config) -> float:
    """Play two turns of the shortest and of the longest prompt, and of one that fills the context.

    Returns the difference in nats between the log-probabilities of the rollouts and those of the training path. Where
    another engine decodes, weights and context alone are checked.
    Raises ModelError, with the remedy, for a model that cannot be played or trained: weights that are no numbers, a
    context longer than its positions, layers that the sampler does not know, log-probabilities that differ.
    """
    name = type(causal_lm(model)).__name__
    try:
        _check_weights(model)
        check_context(model, config.policy.max_context)
        if config.rollout.engine != "transformers":
            return 0.0
        rows = _play(model, codec, queries, config)
        differences = [_difference(model, row, config.rollout.temperature) for row in rows if row.spans]
    except ValueError as error:
        raise ModelError(f"policy.base: {error}") from error
    except (RuntimeError, IndexError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"policy.base: {name} cannot be played by our engine, a trial turn ended with {type(error).__name__}: "
            f"{error}; choose a model of plain or sliding attention, set rollout.engine to vllm, or evaluate this one "
            "behind an endpoint"
        ) from error
    worst, tolerance = max(differences), TOLERANCES[model.dtype]
    if not worst <= tolerance:
        raise ModelError(
            f"policy.base: {name} samples turns whose log-probabilities differ from those of training by {worst:.3g} "
            f"nats, {tolerance:g} are allowed: its attention is not what its configuration says. Choose another model, "
            "or load this one with attn_implementation 'eager' and report it"
        )
    return worst


def _check_weights(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"the weights '{name}' hold values that are no numbers; take an intact copy of the model")


def _play(model: PreTrainedModel, codec: ChatCodec, queries: Sequence[Query], config: Config) -> list[_Row]:
    room, answer = config.rollout.max_new_tokens, codec.observation_ids("{}", "trial")
    longest = config.policy.max_context - _TURNS * (room + len(answer) + 1)
    rows = [_Row(ids) for ids in _prompts(codec, queries, config.rollout.finish, longest)]
    sampler = BatchSampler(model, len(rows), codec.end_ids, max_new_tokens=room, temperature=config.rollout.temperature)
    random = np.random.default_rng(0)
    for _ in range(_TURNS):
        uniforms = random.random((len(rows), room), dtype=np.float32)
        fits = [n for n, row in enumerate(rows) if len(row.input_ids) + room <= config.policy.max_context]
        sampler.feed([Feed(n, rows[n].cached, rows[n].input_ids[rows[n].cached :], uniforms[n]) for n in fits])
        while sampler.ended_count < len(fits):
            sampler.step()
        for turn in sampler.take():
            row = rows[turn.row]
            row.spans.append((len(row.input_ids), len(row.input_ids) + len(turn.ids)))
            row.input_ids += turn.ids
            row.logprobs += turn.logprobs.tolist()
            row.cached = len(row.input_ids) - 1
            row.input_ids += answer if turn.ids[-1] in codec.end_ids else [codec.end_id, *answer]
    return rows


def _prompts(codec: ChatCodec, queries: Sequence[Query], finish: FinishMode, length: int) -> list[list[int]]:
    """The prompts of a short and of a long query, and one of `length` tokens if that is more."""
    by_size = sorted(queries, key=lambda query: len(query.instruction) + len(str(query.tools)))
    extremes = (by_size[0], by_size[-1])
    prompts = [codec.prompt_ids(query.first_messages, offered_tools(query.tools, finish)) for query in extremes]
    longest = prompts[-1]
    full = (longest * (max(0, length) // len(longest) + 1))[: max(0, length)]
    return [*prompts, full] if len(full) > len(longest) else prompts


@torch.no_grad()
def _difference(model: PreTrainedModel, row: _Row, temperature: float) -> float:
    """How far the sampled log-probabilities of a row are from those of the training path."""
    batch = collate([row]).to(model.device)
    trained_N = score_actions(model, batch, temperature).log_probs_N.cpu().numpy()
    differences_N = np.abs(trained_N - np.asarray(row.logprobs, dtype=np.float32))
    return float(differences_N.max() if model.dtype is torch.float32 else differences_N.mean())
