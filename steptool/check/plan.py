"""Before a run: what it would do and take, and whether its tools answer.

The plan is a few lines of text, from the configuration and the files that it names. The estimate has the seconds of
each stage, from speeds measured on this machine, and money, from given prices. Its figures are right to within a factor
of about two. It does not know how long episodes become while the model learns, how fast another machine is, and how
long processes take to start. The trial of tools makes one real call of each.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from steptool.artifacts.metrics import format_duration
from steptool.chat.messages import reads_only
from steptool.check.memory import Machine, ModelShape, check_memory, describe_memory, estimate, read_shape
from steptool.config import Config, ConfigError, EndpointConfig, PolicyConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import FINISH, Query, StepStatus, ToolCall, ToolSchema, Trajectory

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
_SHOWN = 120
"""Characters of a failed call's answer that are shown."""


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
    lines += [line for endpoint, purpose in _find_endpoints(config) for line in _describe_endpoint(endpoint, purpose)]
    return lines


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
    """The memory of each stage. Raises ConfigError if a machine has not enough, and ModelError for a base model whose
    files cannot be used."""
    shape = read_base_shape(config.policy)
    if shape is None:
        yield f"memory      {config.policy.base} is not on this machine yet: a dry run makes or fetches it"
        return
    has_gpu = any(machine.has_gpu for machine in machines.values())
    processes = machines["ppo"].processes if "ppo" in machines else 1
    stages = estimate(shape, config, has_gpu=has_gpu, processes=processes, is_local=is_local)
    yield from ("", *describe_memory(stages))
    check_memory(stages, machines)


def _describe_data(config: Config) -> str:
    from steptool.data.ingest import list_files

    data = config.data
    files = [file for file in list_files(data) if file.size]
    noun = "file" if len(files) == 1 else "files"
    size = f" from {len(files)} {noun} of {sum(file.size for file in files) / 1e6:,.1f} MB" if files else ""
    most = "" if data.source == "desk" else "at most "
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


def _describe_evaluation(config: Config) -> str:
    evaluation = config.evaluation
    repeats = 1 + evaluation.sampled_repeats
    if not evaluation.policies:
        return f"evaluation  base, warm start and result on the {evaluation.split} queries, {repeats} times each"
    names = ", ".join(f"{policy.name} ({policy.kind})" for policy in evaluation.policies)
    return f"evaluation  {names} on the {evaluation.split} queries, {repeats} times each"


def _find_endpoints(config: Config) -> Iterator[tuple[EndpointConfig, str]]:
    """The endpoints that the run would call."""
    if config.rewards.annotator == "judge" or config.evaluation.judged:
        yield config.rewards.judge.endpoint, "judge"
    for policy in config.evaluation.policies:
        if policy.kind == "endpoint":
            yield policy.endpoint, policy.name


def _describe_endpoint(endpoint: EndpointConfig, purpose: str) -> Iterator[str]:
    key = "set" if os.environ.get(endpoint.key_variable) else "not set, which suits a server without keys"
    yield f"endpoint    {purpose}: {endpoint.model} at {endpoint.base_url}; {endpoint.key_variable} is {key}"


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
            sampled = sum(lesson.action_tokens for lesson in lessons) / turns
            return cls(tokens, turns / len(lessons), sampled, f"{len(lessons)} demonstrations")
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
    played, steps = rounds * episodes, config.warm_start.steps
    trained = played * (config.ppo.epochs + _SCORING) * shape.tokens
    repeats = _MODELS * (1 + config.evaluation.sampled_repeats)
    warm_start = steps * config.warm_start.batch_size * shape.tokens / speeds.trained_per_second
    stages = [
        StageEstimate("warm start", warm_start),
        StageEstimate("rollouts", estimate_play_seconds(played, shape, speeds, config)),
        StageEstimate("training", trained / speeds.trained_per_second),
        StageEstimate("evaluation", estimate_play_seconds(repeats * evaluated, shape, speeds, config)),
    ]
    if config.rewards.annotator == "judge":
        judged = played + _ANNOTATED * evaluated
        stages.insert(2, StageEstimate("judge", None, _compute_judge_price(judged, shape, config)))
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
        judged = evaluated * len(config.evaluation.policies)
        stages.append(StageEstimate("judge", None, _compute_judge_price(judged, shape, config)))
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


class CalledTools(StrEnum):
    """Which tools get a call."""

    READ_ONLY = "read-only"
    """Tools whose schema says that they only read, so that the calls change nothing."""
    ALL = "all"
    NONE = "none"


@dataclass
class ToolTrial:
    """The outcome of the calls, by the name of the tool."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each call that was answered."""
    failures: dict[str, str] = field(default_factory=dict)
    """Status and answer of each call that failed."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a tool was not called."""

    @property
    def mean_seconds(self) -> float:
        """Mean time of a call that was answered; 0 without one."""
        return sum(self.seconds.values()) / len(self.seconds) if self.seconds else 0.0

    def describe(self) -> Iterator[str]:
        """A line with the count, one for each tool that failed, and one for each reason not to call a tool."""
        tools = len(self.seconds) + len(self.failures) + len(self.left_out)
        time_taken = f", {self.mean_seconds * 1000:.0f} ms a call on average" if self.seconds else ""
        yield f"{len(self.seconds)} of {tools} tools answered a call{time_taken}"
        for name, answer in self.failures.items():
            yield f"{name} failed: {answer}"
        for reason in dict.fromkeys(self.left_out.values()):
            yield f"not called, since {reason}: {', '.join(n for n, r in self.left_out.items() if r == reason)}"


def try_tools(
    environment: Environment,
    queries: Sequence[Query],
    demonstrations: Iterable[Trajectory],
    limits: ToolsConfig,
    called: CalledTools = CalledTools.READ_ONLY,
) -> ToolTrial:
    """Call each tool of the queries once, in a session of its own.

    The arguments come from a reference solution or a demonstration. If these call a tool several times, the earliest
    call counts, since later ones may need what earlier ones did. A tool without required parameters is called without
    arguments if no solution shows any. Raises ConfigError if tools were called and none answered.
    """
    trial, samples = ToolTrial(), _find_samples(queries, demonstrations)
    limited = LimitedEnvironment(environment, limits)
    try:
        for name, (schema, query) in _list_tools(queries).items():
            sample = samples.get(name) or _call_without_arguments(schema, query)
            if called is CalledTools.NONE:
                trial.left_out[name] = "no calls were asked for"
            elif called is CalledTools.READ_ONLY and reads_only(schema) is not True:
                trial.left_out[name] = "they do not say that they only read"
            elif sample is None:
                trial.left_out[name] = "no task or demonstration shows their arguments"
            else:
                _call(limited, *sample, trial)
    finally:
        limited.close()
    if trial.failures and not trial.seconds:
        name, answer = next(iter(trial.failures.items()))
        raise ConfigError(f"no tool answers: {name} failed with {answer}; see the section tools of the configuration")
    return trial


def _call(environment: LimitedEnvironment, query: Query, call: ToolCall, trial: ToolTrial) -> None:
    """Make a call in a session of its own, and note the outcome. The time does not include the end of the session."""
    with closing(environment.reset(query)) as session:
        start = time.perf_counter()
        result = session.call(call)
        seconds = time.perf_counter() - start
    if result.status is StepStatus.OK:
        trial.seconds[call.name] = seconds
    else:
        trial.failures[call.name] = f"{result.status}: {result.observation[:_SHOWN]}"


def _list_tools(queries: Sequence[Query]) -> dict[str, tuple[ToolSchema, Query]]:
    """The tools by name, Finish left out, each with the first query that offers it."""
    tools: dict[str, tuple[ToolSchema, Query]] = {}
    for query in queries:
        for tool in query.tools:
            tools.setdefault(tool["function"]["name"], (tool, query))
    tools.pop(FINISH, None)
    return tools


def _find_samples(queries: Sequence[Query], demonstrations: Iterable[Trajectory]) -> dict[str, tuple[Query, ToolCall]]:
    """For each tool the call that comes earliest in a solution, with its query."""
    by_id = {query.query_id: query for query in queries}
    solutions = [(query, query.reference.calls or next(iter(query.reference.turns or ()), ())) for query in queries]
    for demonstration in demonstrations:
        if demonstration.query_id in by_id:
            calls = tuple(s.call for s in demonstration.steps if s.call and s.status is StepStatus.OK)
            solutions.append((by_id[demonstration.query_id], calls))
    samples: dict[str, tuple[int, Query, ToolCall]] = {}
    for query, calls in solutions:
        for position, call in enumerate(calls):
            if call.name not in samples or position < samples[call.name][0]:
                samples[call.name] = position, query, call
    return {name: (query, call) for name, (_, query, call) in samples.items()}


def _call_without_arguments(schema: ToolSchema, query: Query) -> tuple[Query, ToolCall] | None:
    function = schema["function"]
    needed = function.get("parameters", {}).get("required")
    return None if needed else (query, ToolCall(function["name"], {}))
