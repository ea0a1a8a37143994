"""Before a run: the base model and the data that fits it, a trial of the model, and a rehearsal of the whole run.

The trial plays turns, whose log-probabilities must equal those of training. The rehearsal tries data, tools and model,
and estimates time and money of the run from a few turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from steptool.artifacts.metrics import say
from steptool.chat.call_format import offer_tools
from steptool.chat.codec import ChatCodec
from steptool.check.data import describe_data
from steptool.check.memory import GIB, STAGES, Machine, check_memory, detect_machine, estimate_on, read_shape
from steptool.check.plan import (
    EpisodeShape,
    Speeds,
    describe_estimate,
    estimate_evaluation,
    estimate_training,
)
from steptool.check.trials import CalledTools, ToolTrial, try_endpoints, try_tools
from steptool.config import Config, FinishMode
from steptool.data.ingest import ingest
from steptool.environments.base import check_queries
from steptool.models.actor import Actor, collate, score_actions
from steptool.models.adapter import add_adapter
from steptool.models.load import EMBEDDED, ModelError, load_codec, load_model, prepare_base, read_model_config
from steptool.models.logprobs import unwrap_model
from steptool.models.optimizer import make_adamw
from steptool.models.sharding import check_parts
from steptool.pipeline.episodes import FETCHED
from steptool.pipeline.tracking import check_trackers, track_configuration
from steptool.policies.catalog import open_environment_of
from steptool.policies.kv_cache import check_context
from steptool.policies.sampler import BatchSampler, Feed
from steptool.records import Query, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from steptool.storage.transfer import localize
from steptool.training.processes import PassLimit
from steptool.training.trainer import Settings, Supervised, Trainer
from steptool.training.warm_start import Lessons, encode_demonstrations, iterate_texts, select_fitting

TOLERANCES = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Nats by which the log-probabilities of a turn may differ from those of the training path: they allow for rounding
alone. In float32 the largest difference of a token counts, in bfloat16 the mean."""
_TURNS = 2
"""Turns of each conversation of the trial."""
_ROWS, _TOKENS = 16, 16
"""The measurement decodes at most so many episodes together, with so many tokens in each turn."""
_UPDATES = 3
"""Optimizer steps that are measured; the first does not count."""
_NO_CHANGE = 1e-12
"""Learning rate of the measurement."""


@dataclass
class _Row:
    """A conversation of the trial."""

    input_ids: list[int]
    spans: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    """Tokens in the KV cache; the last one of a turn is not."""


def try_model(model: PreTrainedModel, codec: ChatCodec, queries: Sequence[Query], config: Config) -> float:
    """Play two turns of the shortest and of the longest prompt, and of one that fills the context.

    Returns the difference in nats between the log-probabilities of the rollouts and those of the training path. Where
    another engine decodes, no turns are played. With LoRA the model has an adapter afterwards.
    Raises ModelError, with the remedy, for a model that cannot be played or trained: weights that are no numbers, a
    context longer than its positions, layers that the sampler does not know, log-probabilities that differ.
    """
    name = type(unwrap_model(model)).__name__
    try:
        _check_weights(model)
        check_context(model, config.policy.max_context)
        rows, differences = _make_rows(codec, queries, config), [0.0]
        _check_vocabulary(model, rows)
        if config.rollout.engine == "transformers":
            _play(model, codec, rows, config)
            differences = [_measure_difference(model, row, config.rollout.temperature) for row in rows if row.spans]
        _try_training(model, rows[0].input_ids, config)
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


def _check_vocabulary(model: PreTrainedModel, rows: Sequence[_Row]) -> None:
    """Raise ValueError for a prompt with a token that the model has no embedding for."""
    largest = max(max(row.input_ids) for row in rows)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if largest >= embeddings:
        raise ValueError(
            f"a prompt has the token {largest}, and the model has embeddings for {embeddings} tokens only; take the "
            "tokenizer that belongs to the weights, or save the model after resize_token_embeddings"
        )


def _make_rows(codec: ChatCodec, queries: Sequence[Query], config: Config) -> list[_Row]:
    room, answer = config.rollout.max_new_tokens, codec.observation_ids("{}", "trial")
    longest = config.policy.max_context - _TURNS * (room + len(answer) + 1)
    return [_Row(ids) for ids in _make_prompts(codec, queries, config.rollout.finish, longest)]


def _play(model: PreTrainedModel, codec: ChatCodec, rows: Sequence[_Row], config: Config) -> None:
    room, temperature = config.rollout.max_new_tokens, config.rollout.temperature
    sampler = BatchSampler(model, len(rows), codec.end_ids, max_new_tokens=room, temperature=temperature)
    _play_turns(sampler, rows, codec, room, config.policy.max_context)


@torch.no_grad()
def _try_training(model: PreTrainedModel, input_ids: list[int], config: Config) -> None:
    """Compute a token's log-probability as training does, with an adapter where LoRA is on.

    Raises ValueError for a model with which that is not possible.
    """
    row = _Row(input_ids, spans=[(len(input_ids) - 1, len(input_ids))])
    try:
        policy = add_adapter(model, config.policy, config.seed) if config.policy.lora_rank else model
        score_actions(policy, collate([row]).to(model.device), config.rollout.temperature)
    except (RuntimeError, IndexError, TypeError, AttributeError, KeyError, ValueError) as error:
        remedy = "set policy.lora_rank to 0 or " if config.policy.lora_rank else ""
        raise ValueError(
            f"{type(model).__name__} cannot be trained, a trial ended with {type(error).__name__}: {error}; {remedy}"
            "choose another model"
        ) from error


def _play_turns(
    sampler: BatchSampler, rows: Sequence[_Row], codec: ChatCodec, room: int, longest: int | None = None
) -> list[float]:
    """Play two turns of at most `room` tokens in each conversation, and an answer of a tool after each.

    Returns the seconds of the first turns together and of the second ones. A conversation takes no turn that might
    make it longer than `longest` tokens.
    """
    random, answer, seconds = np.random.default_rng(0), codec.observation_ids("{}", "trial"), []
    for _ in range(_TURNS):
        start = time.perf_counter()
        uniforms = random.random((len(rows), room), dtype=np.float32)
        places = [n for n, row in enumerate(rows) if longest is None or len(row.input_ids) + room <= longest]
        sampler.feed([Feed(n, rows[n].cached, rows[n].input_ids[rows[n].cached :], uniforms[n]) for n in places])
        while sampler.ended_count < len(places):
            sampler.step()
        for turn in sampler.take():
            row = rows[turn.row]
            row.spans.append((len(row.input_ids), len(row.input_ids) + len(turn.ids)))
            row.input_ids += turn.ids
            row.logprobs += turn.logprobs.tolist()
            row.cached = len(row.input_ids) - 1
            row.input_ids += answer if turn.ids[-1] in codec.end_ids else [codec.end_id, *answer]
        seconds.append(time.perf_counter() - start)
    return seconds


def _make_prompts(codec: ChatCodec, queries: Sequence[Query], finish: FinishMode, length: int) -> list[list[int]]:
    """The prompts of a short and of a long query, and one of `length` tokens if that is more."""
    by_size = sorted(queries, key=lambda query: len(query.instruction) + len(str(query.tools)))
    extremes = (by_size[0], by_size[-1])
    prompts = [codec.prompt_ids(query.first_messages, offer_tools(query.tools, finish)) for query in extremes]
    longest = prompts[-1]
    full = (longest * (max(0, length) // len(longest) + 1))[: max(0, length)]
    return [*prompts, full] if len(full) > len(longest) else prompts


@torch.no_grad()
def _measure_difference(model: PreTrainedModel, row: _Row, temperature: float) -> float:
    """How far the sampled log-probabilities of a row are from those of the training path."""
    batch = collate([row]).to(model.device)
    trained_N = score_actions(model, batch, temperature).log_probs_N.cpu().numpy()
    differences_N = np.abs(trained_N - np.asarray(row.logprobs, dtype=np.float32))
    return float(differences_N.max() if model.dtype is torch.float32 else differences_N.mean())


@dataclass(frozen=True)
class Preparation:
    """The base model in its folder, and the part of the data that fits it."""

    model: Path
    queries: list[Query]
    """Those whose prompts fit the context."""
    lessons: Lessons
    """The demonstrations with their tokens, and those that the model cannot learn from."""


def prepare(
    queries: Sequence[Query],
    demonstrations: Sequence[Trajectory],
    config: Config,
    out_dir: str | Path,
    *,
    is_local: bool = False,
    machines: Mapping[str, Machine] | None = None,
) -> Preparation:
    """Put the base model into a folder, play a turn with it, check that prompts fit, and encode the demonstrations.

    `is_local` tells a local run from a run on a cluster, and `machines` is the machine of each stage by its name, for
    the estimate of memory that is printed. None: all stages run on this machine.
    Raises ConfigError for a stage that does not fit its machine, and ModelError for a model that cannot be used. Raises
    ValueError for a prompt that leaves no room for a step, and where a warm start is configured but no demonstration
    can be learned from.
    """
    check_trackers(config.tracking)
    track_configuration(config)
    texts = iterate_texts(queries, demonstrations)
    base = prepare_base(config.policy, texts, config.seed, out_dir)
    if machines and "ppo" in machines and machines["ppo"].processes > 1 and config.ppo.sharding == "fsdp":
        check_parts(base)
    codec = load_codec(base, config.policy.chat_format, config.policy.chat_date)
    fitting = select_fitting(queries, codec, config)
    if machines is None:
        machines = dict.fromkeys(STAGES, detect_machine())
    _estimate_memory(base, config, machines, is_local=is_local)
    try_model(load_model(base), codec, fitting, config)
    lessons = encode_demonstrations(fitting, demonstrations, codec, config.policy.max_context, config.rollout.finish)
    say("prepare", f"base model '{config.policy.base}', {len(fitting)} of {len(queries)} prompts fit its context")
    for name, number in lessons.counts().items():
        say("prepare", f"{name}: {number}")
    lessons.check(config.warm_start)
    return Preparation(base, fitting, lessons)


def _estimate_memory(base: Path, config: Config, machines: Mapping[str, Machine], *, is_local: bool) -> None:
    """Print the memory that each stage needs. Raises ConfigError for a stage that does not fit its machine."""
    stages = estimate_on(machines, read_shape(read_model_config(base), "auto"), config, is_local=is_local)
    say("prepare", f"memory by estimate: {', '.join(f'{s.stage} {s.total / GIB:.1f} GiB' for s in stages)}")
    check_memory(stages, machines)


def rehearse(config: Config, *, for_training: bool, called: CalledTools = CalledTools.READ_ONLY) -> Iterator[str]:
    """Rehearse a run in a temporary folder, and yield a line for each part that succeeded.

    Raises what the stages of the run would raise: IngestError for data, ModelError and ValueError for the model and its
    prompts, and errors of the environment; and ConfigError where no tool answers or an endpoint does not reply.
    """
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        config = localize(config, folder / "fetched", *FETCHED)
        data = ingest(config, folder / "data", for_training)
        yield from describe_data(data)
        queries = read_queries(data.queries_path)
        recordings = read_records(data.demonstrations_path, Trajectory)
        with open_environment_of(queries, config, recordings) as environment:
            check_queries(environment, queries)
            yield f"tools       {environment.name}: a session starts for each of {len(queries)} queries"
            trial = try_tools(environment, queries, recordings, config.tools, called)
        yield from (f"            {line}" for line in trial.describe())
        yield from try_endpoints(config, queries[0], for_training=for_training)
        preparation = None
        if for_training:
            preparation = prepare(queries, recordings, config, folder / "base", is_local=True)
            count = len(preparation.queries)
            yield f"model       {config.policy.base}: loaded and tried, {count} prompts fit its context"
        yield ""
        yield from estimate_run(config, queries, preparation, trial)


def estimate_run(
    config: Config, queries: Sequence[Query], preparation: Preparation | None, trial: ToolTrial
) -> Iterator[str]:
    """A table of time and money by stage, for a training, or without a prepared model for an evaluation."""
    evaluated = sum(query.split == config.evaluation.split or config.evaluation.split == "all" for query in queries)
    lessons = preparation.lessons.encoded if preparation else []
    if preparation:
        measurement: Measurement | None = measure(preparation.model, preparation.queries, config)
    else:
        measurement = _measure_first_model(queries, config)
    prompt_tokens = measurement.prompt_tokens if measurement else config.policy.max_context / 2
    shape = EpisodeShape.of(lessons, prompt_tokens, config)
    yield f"episodes of {shape.turns:.1f} turns and {shape.tokens:.0f} tokens, by {shape.source}"
    speeds = measurement.with_tools(trial.mean_seconds) if measurement else None
    if speeds:
        yield (
            f"measured here: {speeds.sampled_per_second:,.0f} tokens a second are sampled, "
            f"{speeds.trained_per_second:,.0f} trained"
        )
    if preparation and speeds:
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


def measure(folder: str | Path, queries: Sequence[Query], config: Config) -> Measurement:
    """Play two turns of a few episodes with our own sampler, and make three updates on them."""
    codec = load_codec(folder, config.policy.chat_format, config.policy.chat_date)
    number = min(_ROWS, config.rollout.batch_size, config.rollout.episodes)
    played_queries = list(islice(cycle(queries), number))
    rows = [
        _Row(codec.prompt_ids(q.first_messages, offer_tools(q.tools, config.rollout.finish))) for q in played_queries
    ]
    prompt_tokens = sum(len(row.input_ids) for row in rows) / len(rows)
    prompt, sampled = _measure_turns(rows, codec, load_model(folder), config)
    return Measurement(prompt_tokens, Speeds(prompt, sampled, _measure_updates(rows, load_model(folder), config), 0.0))


def _measure_first_model(queries: Sequence[Query], config: Config) -> Measurement | None:
    """The speeds of the first model that an evaluation plays; None if its model is not on this machine."""
    places = [policy.model for policy in config.evaluation.policies if policy.kind == "model" and not policy.base]
    folders = [EMBEDDED if place == "embedded" else Path(place) for place in places]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return measure(folder, queries, config) if folder else None


def _measure_turns(
    rows: Sequence[_Row], codec: ChatCodec, model: PreTrainedModel, config: Config
) -> tuple[float, float]:
    """Seconds to read a prompt, and tokens sampled in a second: the first turn reads prompts, the second answers."""
    room = min(_TOKENS, config.rollout.max_new_tokens)
    sampler = BatchSampler(model.eval(), len(rows), set(), max_new_tokens=room, temperature=config.rollout.temperature)
    first, second = _play_turns(sampler, rows, codec, room)
    return max(0.0, first - second) / len(rows), len(rows) * room / second


def _measure_updates(rows: Sequence[_Row], model: PreTrainedModel, config: Config) -> float:
    """Tokens of whole episodes, forward and backward, in a second."""
    actor = Actor(model)
    if config.policy.lora_rank:
        actor.policy = add_adapter(actor.policy, config.policy, config.seed).eval()
    if config.ppo.gradient_checkpointing:
        actor.checkpoint_activations()
    ends: list[float] = []
    settings = Settings(PassLimit(config.ppo.micro_batch_size, config.ppo.tokens_per_pass, actor.packed), 1.0)
    optimizer = make_adamw(actor.policy, _NO_CHANGE)
    trainer = Trainer(
        actor, optimizer, Supervised(), rows, settings, on_step=lambda *_: ends.append(time.perf_counter())
    )
    trainer.train([np.arange(len(rows))] * _UPDATES)
    return sum(len(row.input_ids) for row in rows) * (_UPDATES - 1) / (ends[-1] - ends[0])
