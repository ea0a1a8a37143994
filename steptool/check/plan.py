"""Before a run: what it would do and take.

The plan is a few lines of text, from the configuration and the files that it names. The estimate has the seconds of
each stage, from speeds measured on this machine, and money, from given prices. Its figures are right to within a factor
of about two. It does not know how long episodes become while the model learns, how fast another machine is, and how
long processes take to start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steptool.artifacts.metrics import format_duration
from steptool.check.memory import Machine, ModelShape, check_memory, describe_memory, estimate_on, read_shape
from steptool.config import Config, EndpointConfig, PolicyConfig
from steptool.config.training import HAVE_NO_VALUES
from steptool.records import Trajectory

_SCORING = 2 / 3
"""What the forward passes of the policy and of its reference cost, as a share of an update of the same tokens. An
update costs as much as three forward passes."""
_MODELS = 3
"""Models that a training evaluates: base, warm start and result."""
_ANNOTATED = 2
"""Models whose greedy episodes are scored after training: warm start and result."""
_JUDGE_TOKENS, _VERDICT_TOKENS = 1000, 250
"""Tokens of a judge's instructions, and of its answer."""
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")


def describe_plan(config: Config) -> list[str]:
    """A line for each stage of `train`, and one for each policy that `evaluate` would compare.

    Raises IngestError for data that is not there.
    """
    lines = [
        _describe_data(config),
        _describe_policy(config),
        _describe_warm_start(config),
        *_describe_rounds(config),
        _describe_evaluation(config),
    ]
    return [*lines, *_describe_endpoints(config)]


def read_base_shape(policy: PolicyConfig) -> ModelShape | None:
    """The shape of the base model; None if it is made later (scratch), lies behind a url or is not on this machine.

    Raises ModelError for a folder whose files cannot be used, and for a base that is neither a folder nor a Hub id.
    """
    from steptool.models.load import EMBEDDED, ModelError, check_model, explain_errors, read_model_config

    if policy.base == "scratch" or "://" in policy.base:
        return None
    try:
        place = EMBEDDED if policy.base == "embedded" else policy.base
        check_model(place, policy)
        model_config = read_model_config(place)
    except ModelError:
        if Path(place).exists() or not _HUB_ID.fullmatch(policy.base):
            raise
        return None  # a Hub id that is not on this machine, and no network to fetch it
    with explain_errors(place, "configuration"):
        return read_shape(model_config, policy.dtype)


def describe_memory_needs(config: Config, machines: Mapping[str, Machine], *, is_local: bool = True) -> Iterator[str]:
    """The memory and the disk of each stage.

    Raises ConfigError if a machine has not enough, and ModelError for a base model whose files cannot be used.
    """
    shape = read_base_shape(config.policy)
    if shape is None:
        yield f"memory      {config.policy.base} is not on this machine yet: a dry run makes or fetches it"
        return
    stages = estimate_on(machines, shape, config, is_local=is_local)
    yield from ("", *describe_memory(stages))
    check_memory(stages, machines)


def _describe_data(config: Config) -> str:
    from steptool.data.ingest import list_files
    from steptool.data.sources import open_source

    data = config.data
    files = [file for file in list_files(data) if file.size]
    noun = "file" if len(files) == 1 else "files"
    size = f" from {len(files)} {noun} of {sum(file.size for file in files) / 1e6:,.1f} MB" if files else ""
    most = "" if open_source(data.source).draws_tasks else "at most "
    counts = f"{data.train_queries} training, {data.validation_queries} validation and {data.heldout_queries} held-out"
    return f"data        {data.source}: {most}{counts} queries{size}"


def _describe_policy(config: Config) -> str:
    policy = config.policy
    tuning = f"LoRA of rank {policy.lora_rank}" if policy.lora_rank else "full fine-tuning"
    return f"policy      {policy.base}: {tuning}, {policy.max_context} tokens of context"


def _describe_warm_start(config: Config) -> str:
    warm_start = config.warm_start
    if not warm_start.steps:
        return "warm start  none"
    return f"warm start  {warm_start.steps} steps on at most {warm_start.demonstrations} demonstrations"


def _describe_rounds(config: Config) -> Iterator[str]:
    ppo, rollout = config.ppo, config.rollout
    updates = ppo.epochs * -(-rollout.episodes // ppo.batch_size)
    tries = f", {rollout.samples_per_query} of each query," if rollout.samples_per_query > 1 else ""
    yield (
        f"rounds      {ppo.rounds} rounds of {rollout.episodes} episodes{tries} in {rollout.shards} shards; "
        f"{updates} updates a round, {ppo.rounds * updates} in all"
    )
    yield f"learning    {ppo.algorithm} on {ppo.reward} rewards by the annotator {config.rewards.annotator}"
    has_values = ppo.algorithm not in HAVE_NO_VALUES and config.credit.value == "head"
    if has_values and ppo.value_warmup_rounds >= ppo.rounds:
        yield (
            "            the model stays as it is: only the value head learns in all rounds "
            f"(ppo.value_warmup_rounds: {ppo.value_warmup_rounds})"
        )


def _describe_evaluation(config: Config) -> str:
    evaluation = config.evaluation
    repeats = 1 + evaluation.sampled_repeats
    if not evaluation.policies:
        return f"evaluation  base, warm start and result on the {evaluation.split} queries, {repeats} times each"
    names = ", ".join(f"{policy.name} ({policy.kind})" for policy in evaluation.policies)
    return f"evaluation  {names} on the {evaluation.split} queries, {repeats} times each"


@dataclass(frozen=True)
class CalledEndpoint:
    """An endpoint that a run calls."""

    field: str
    """Field of the configuration that names it."""
    name: str
    """"judge", or the name of the policy behind it."""
    endpoint: EndpointConfig
    cache: str
    """File that keeps its replies; empty without one."""
    is_judge: bool = False


def find_endpoints(config: Config, *, for_training: bool) -> Iterator[CalledEndpoint]:
    """The endpoints that a training calls, or those that an evaluation calls."""
    judge = config.rewards.judge
    if config.rewards.annotator == "judge" if for_training else config.evaluation.judged:
        yield CalledEndpoint("rewards.judge.endpoint", "judge", judge.endpoint, judge.cache, is_judge=True)
    for policy in () if for_training else config.evaluation.policies:
        if policy.kind == "endpoint":
            field = f"evaluation.policies: the endpoint of '{policy.name}'"
            yield CalledEndpoint(field, policy.name, policy.endpoint, policy.cache)


def _describe_endpoints(config: Config) -> Iterator[str]:
    """A line for each endpoint that a training or an evaluation calls."""
    endpoints = [*find_endpoints(config, for_training=True), *find_endpoints(config, for_training=False)]
    for name, endpoint in {c.field: (c.name, c.endpoint) for c in endpoints}.values():
        key = "set" if os.environ.get(endpoint.key_variable) else "not set, which suits a server without keys"
        yield f"endpoint    {name}: {endpoint.model} at {endpoint.base_url}; {endpoint.key_variable} is {key}"


@dataclass(frozen=True)
class EpisodeShape:
    """How long an episode is, by demonstrations or by the limits of the configuration."""

    tokens: float
    """Tokens of prompt, turns and observations together."""
    turns: float
    turn_tokens: float
    source: str
    """Where the figures are from."""

    @classmethod
    def of(cls, lessons: Sequence[Trajectory], prompt_tokens: float, config: Config) -> EpisodeShape:
        """The mean of the lessons; without any, half of the turns and tokens that the limits allow."""
        if lessons:
            turns = sum(len(lesson.spans) for lesson in lessons)
            tokens = sum(len(lesson.input_ids) for lesson in lessons) / len(lessons)
            sampled_tokens = sum(lesson.action_tokens for lesson in lessons) / turns
            return cls(tokens, turns / len(lessons), sampled_tokens, f"{len(lessons)} demonstrations")
        half_turns, half_tokens = config.rollout.max_steps / 2, config.rollout.max_new_tokens / 2
        whole = min(config.policy.max_context, prompt_tokens + 2 * half_turns * half_tokens)
        return cls(whole, half_turns, half_tokens, "half of rollout.max_steps and max_new_tokens")


@dataclass(frozen=True)
class Speeds:
    """What was measured on this machine."""

    prompt_seconds: float
    """Seconds to read the prompt of an episode, where several are read together."""
    sampled_per_second: float
    """Tokens sampled in a second, in all episodes that are decoded together."""
    trained_per_second: float
    """Tokens of whole episodes trained on in a second, forward and backward."""
    call_seconds: float
    """Seconds until a tool answers."""


@dataclass(frozen=True)
class StageEstimate:
    """What a stage will take."""

    stage: str
    seconds: float | None
    """None: unknown, because an endpoint does the work."""
    money: float | None = None
    """None: it costs nothing, or no price is given."""


def estimate_training(config: Config, shape: EpisodeShape, speeds: Speeds, evaluated: int) -> list[StageEstimate]:
    """The stages of a training whose evaluation plays `evaluated` queries."""
    rounds, episodes = config.ppo.rounds, config.rollout.episodes
    played_episodes, steps = rounds * episodes, config.warm_start.steps
    trained_tokens = played_episodes * (config.ppo.epochs + _SCORING) * shape.tokens
    repeats = _MODELS * (1 + config.evaluation.sampled_repeats)
    warm_start = steps * config.warm_start.batch_size * shape.tokens / speeds.trained_per_second
    stages = [
        StageEstimate("warm start", warm_start),
        StageEstimate("rollouts", estimate_play_seconds(played_episodes, shape, speeds, config)),
        StageEstimate("training", trained_tokens / speeds.trained_per_second),
        StageEstimate("evaluation", estimate_play_seconds(repeats * evaluated, shape, speeds, config)),
    ]
    if config.rewards.annotator == "judge":
        judged_episodes = played_episodes + _ANNOTATED * evaluated
        stages.insert(2, StageEstimate("judge", None, _compute_judge_price(judged_episodes, shape, config)))
    return stages


def estimate_evaluation(
    config: Config, shape: EpisodeShape, speeds: Speeds | None, evaluated: int
) -> list[StageEstimate]:
    """A line for each policy that an evaluation of `evaluated` queries compares; `speeds` is None if none of them is a
    model."""
    stages = []
    for policy in config.evaluation.policies:
        repeats = 1 if policy.kind == "playback" else 1 + config.evaluation.sampled_repeats
        seconds: float | None = 0.0 if policy.kind == "playback" else None
        money: float | None = None
        if policy.kind == "model" and speeds:
            seconds = estimate_play_seconds(repeats * evaluated, shape, speeds, config)
        if policy.kind == "endpoint":
            tokens_in = shape.tokens * shape.turns / 2
            money = _compute_price(policy.endpoint, repeats * evaluated, tokens_in, shape.turns * shape.turn_tokens)
        stages.append(StageEstimate(policy.name, seconds, money))
    if config.evaluation.judged:
        judged_episodes = evaluated * len(config.evaluation.policies)
        stages.append(StageEstimate("judge", None, _compute_judge_price(judged_episodes, shape, config)))
    return stages


def estimate_play_seconds(episodes: int, shape: EpisodeShape, speeds: Speeds, config: Config) -> float:
    """Seconds that episodes take on one machine; tools answer side by side."""
    sampled = shape.turns * shape.turn_tokens / speeds.sampled_per_second
    calls = shape.turns * speeds.call_seconds / min(config.tools.concurrency, config.rollout.batch_size)
    return episodes * (speeds.prompt_seconds + sampled + calls)


def describe_estimate(stages: Sequence[StageEstimate]) -> Iterator[str]:
    """A table in text: time and money of each stage, and of all."""
    yield f"{'estimate':<18}{'time':>14}{'money':>12}"
    durations = [stage.seconds for stage in stages if stage.seconds is not None]
    prices = [stage.money for stage in stages if stage.money is not None]
    whole = StageEstimate("in all", sum(durations), sum(prices) if prices else None)
    for stage in (*stages, whole):
        seconds = "unknown" if stage.seconds is None else format_duration(stage.seconds)
        yield f"{stage.stage:<18}{seconds:>14}{'' if stage.money is None else f'{stage.money:.2f}':>12}"


def _compute_judge_price(trajectories: int, shape: EpisodeShape, config: Config) -> float | None:
    judge = config.rewards.judge
    return _compute_price(judge.endpoint, trajectories * judge.votes, _JUDGE_TOKENS + shape.tokens, _VERDICT_TOKENS)


def _compute_price(endpoint: EndpointConfig, requests: float, tokens_in: float, tokens_out: float) -> float | None:
    """Money of requests with so many tokens each; None where the configuration names no price."""
    if not endpoint.price_in and not endpoint.price_out:
        return None
    return requests * (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6
