"""A rehearsal of a run: it tries data, tools and model, and estimates time and money of the run from a few turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from steptool.chat.finish import offered_tools
from steptool.check.estimate import EpisodeShape, Speeds, describe_estimate, estimate_evaluation, estimate_training
from steptool.check.tool_calls import CalledTools, ToolTrial, try_tools
from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.environments.base import check_queries
from steptool.models.actor import Actor
from steptool.models.adapter import new_adapter
from steptool.models.load import EMBEDDED, load_codec, load_model
from steptool.models.optimizer import adamw
from steptool.pipeline.episodes import FETCHED
from steptool.pipeline.learning import Preparation, prepare
from steptool.policies.catalog import open_environment_of
from steptool.policies.sampler import BatchSampler, Feed
from steptool.records import Query, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from steptool.storage.remote import localize
from steptool.training.algorithms.base import Supervised
from steptool.training.processes import PassLimit
from steptool.training.trainer import Settings, Trainer

_ROWS, _TOKENS = 16, 16
"""The measurement decodes at most so many episodes together, with so many tokens in each turn."""
_UPDATES = 3
"""Optimizer steps that are measured; the first does not count."""
_NO_CHANGE = 1e-12
"""Learning rate of the measurement."""


def rehearse(config: Config, *, for_training: bool, called: CalledTools = CalledTools.READ_ONLY) -> Iterator[str]:
    """Rehearse a run in a temporary folder, and yield a line for each part that succeeded.

    Raises what the stages of the run would raise: IngestError for data, ModelError and ValueError for the model and its
    prompts, and errors of the environment; and ConfigError where no tool answers.
    """
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        config = localize(config, folder / "fetched", *FETCHED)
        data = ingest(config, folder / "data", for_training)
        yield f"data        read: {data.counts['queries kept']} of {data.counts['queries read']} queries are kept"
        queries = read_queries(data.queries_path)
        recordings = read_records(data.demonstrations_path, Trajectory)
        with open_environment_of(queries, config, recordings) as environment:
            check_queries(environment, queries)
            yield f"tools       {environment.name}: a session starts for each of {len(queries)} queries"
            trial = try_tools(environment, queries, recordings, config.tools, called)
        yield from (f"            {line}" for line in trial.describe())
        prepared = None
        if for_training:
            prepared = prepare(queries, recordings, config, folder / "base")
            yield f"model       {config.policy.base}: loaded and tried, {len(prepared.queries)} prompts fit its context"
        yield ""
        yield from estimate(config, queries, prepared, trial)


def estimate(config: Config, queries: Sequence[Query], prepared: Preparation | None, trial: ToolTrial) -> Iterator[str]:
    """A table of time and money by stage, for a training, or without a prepared model for an evaluation."""
    evaluated = sum(query.split == config.evaluation.split or config.evaluation.split == "all" for query in queries)
    lessons = prepared.lessons.encoded if prepared else []
    measured = measure(prepared.model, prepared.queries, config) if prepared else _measure_first_model(queries, config)
    prompt_tokens = measured.prompt_tokens if measured else config.policy.max_context / 2
    shape = EpisodeShape.of(lessons, prompt_tokens, config)
    yield f"episodes of {shape.turns:.1f} turns and {shape.tokens:.0f} tokens, by {shape.source}"
    speeds = measured.with_tools(trial.mean_seconds) if measured else None
    if speeds:
        yield (
            f"measured here: {speeds.sampled_per_second:,.0f} tokens a second are sampled, "
            f"{speeds.trained_per_second:,.0f} trained"
        )
    if prepared and speeds:
        yield from describe_estimate(estimate_training(config, shape, speeds, evaluated))
    else:
        yield from describe_estimate(estimate_evaluation(config, shape, speeds, evaluated))


@dataclass(frozen=True)
class Measurement:
    """The figures that were measured on a few turns and updates."""

    prompt_tokens: float
    """Mean tokens of a prompt."""
    speeds: Speeds

    def with_tools(self, call_seconds: float) -> Speeds:
        """The measured speeds, with the seconds that a tool call takes."""
        return replace(self.speeds, call_seconds=call_seconds)


@dataclass
class _Row:
    """An episode of the measurement: its tokens, and where its turns lie."""

    input_ids: list[int]
    spans: list[tuple[int, int]] = field(default_factory=list)


def measure(folder: str | Path, queries: Sequence[Query], config: Config) -> Measurement:
    """Play two turns of a few episodes with our own sampler, and make three updates on them."""
    codec = load_codec(folder, config.policy.chat_format, config.policy.chat_date)
    number = min(_ROWS, config.rollout.batch_size, config.rollout.episodes)
    played = list(islice(cycle(queries), number))
    rows = [_Row(codec.prompt_ids(q.first_messages, offered_tools(q.tools, config.rollout.finish))) for q in played]
    prompt_tokens = sum(len(row.input_ids) for row in rows) / len(rows)
    prompt, sampled = _measure_turns(rows, codec.observation_ids("{}", "tool"), load_model(folder), config)
    return Measurement(prompt_tokens, Speeds(prompt, sampled, _measure_updates(rows, load_model(folder), config), 0.0))


def _measure_first_model(queries: Sequence[Query], config: Config) -> Measurement | None:
    """The speeds of the first model that an evaluation plays; None if its model is not on this machine."""
    places = [policy.model for policy in config.evaluation.policies if policy.kind == "model" and not policy.base]
    folders = [EMBEDDED if place == "embedded" else Path(place) for place in places]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return measure(folder, queries, config) if folder else None


def _measure_turns(
    rows: Sequence[_Row], answer: list[int], model: PreTrainedModel, config: Config
) -> tuple[float, float]:
    """Seconds to read a prompt, and tokens sampled in a second: the first turn reads prompts, the second answers."""
    room = min(_TOKENS, config.rollout.max_new_tokens)
    sampler = BatchSampler(model.eval(), len(rows), set(), max_new_tokens=room, temperature=config.rollout.temperature)
    random, seconds = np.random.default_rng(0), []
    fed = [0] * len(rows)
    for _ in range(2):
        start = time.perf_counter()
        uniforms = random.random((len(rows), room), dtype=np.float32)
        sampler.feed([Feed(n, fed[n], row.input_ids[fed[n] :], uniforms[n]) for n, row in enumerate(rows)])
        while sampler.ended_count < len(rows):
            sampler.step()
        for turn in sampler.take():
            row = rows[turn.row]
            row.spans.append((len(row.input_ids), len(row.input_ids) + len(turn.ids)))
            fed[turn.row] = len(row.input_ids) + len(turn.ids) - 1
            row.input_ids += [*turn.ids, *answer]
        seconds.append(time.perf_counter() - start)
    return max(0.0, seconds[0] - seconds[1]) / len(rows), len(rows) * room / seconds[1]


def _measure_updates(rows: Sequence[_Row], model: PreTrainedModel, config: Config) -> float:
    """Tokens of whole episodes, forward and backward, in a second."""
    actor = Actor(model)
    if config.policy.lora_rank:
        actor.policy = new_adapter(actor.policy, config.policy, config.seed).eval()
    if config.ppo.gradient_checkpointing:
        actor.checkpoint_activations()
    ends: list[float] = []
    settings = Settings(PassLimit(config.ppo.micro_batch_size, config.ppo.tokens_per_pass, actor.packed), 1.0)
    optimizer = adamw(actor.policy, _NO_CHANGE)
    trainer = Trainer(
        actor, optimizer, Supervised(), rows, settings, on_step=lambda *_: ends.append(time.perf_counter())
    )
    trainer.train([np.arange(len(rows))] * _UPDATES)
    return sum(len(row.input_ids) for row in rows) * (_UPDATES - 1) / (ends[-1] - ends[0])
