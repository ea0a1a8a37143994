"""An estimate of a run: seconds of each stage, from speeds measured on this machine, and money, from given prices.

The figures are right to within a factor of about two. They do not know how long episodes become while the model learns,
how fast another machine is, and how long processes take to start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steptool.artifacts.metrics import format_duration
from steptool.config import Config, EndpointConfig
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
        StageEstimate("rollouts", play_seconds(played, shape, speeds, config)),
        StageEstimate("training", trained / speeds.trained_per_second),
        StageEstimate("evaluation", play_seconds(repeats * evaluated, shape, speeds, config)),
    ]
    if config.rewards.annotator == "judge":
        judged = played + _ANNOTATED * evaluated
        stages.insert(2, StageEstimate("judge", None, _price_of_judge(judged, shape, config)))
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
            seconds = play_seconds(repeats * evaluated, shape, speeds, config)
        if policy.kind == "endpoint":
            read = shape.tokens * shape.turns / 2
            money = _price(policy.endpoint, repeats * evaluated, read, shape.turns * shape.turn_tokens)
        stages.append(StageEstimate(policy.name, seconds, money))
    if config.evaluation.judged:
        judged = evaluated * len(config.evaluation.policies)
        stages.append(StageEstimate("judge", None, _price_of_judge(judged, shape, config)))
    return stages


def play_seconds(episodes: int, shape: EpisodeShape, speeds: Speeds, config: Config) -> float:
    """Seconds that episodes take on one machine; tools answer side by side."""
    sampled = shape.turns * shape.turn_tokens / speeds.sampled_per_second
    calls = shape.turns * speeds.call_seconds / min(config.tools.concurrency, config.rollout.batch_size)
    return episodes * (speeds.prompt_seconds + sampled + calls)


def describe_estimate(stages: Sequence[StageEstimate]) -> Iterator[str]:
    """A table in text: time and money of each stage, and of all."""
    yield f"{'estimate':<18}{'time':>14}{'money':>12}"
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    prices = [stage.money for stage in stages if stage.money is not None]
    whole = StageEstimate("in all", sum(known), sum(prices) if prices else None)
    for stage in (*stages, whole):
        seconds = "unknown" if stage.seconds is None else format_duration(stage.seconds)
        yield f"{stage.stage:<18}{seconds:>14}{'' if stage.money is None else f'{stage.money:.2f}':>12}"


def _price_of_judge(trajectories: int, shape: EpisodeShape, config: Config) -> float | None:
    judge = config.rewards.judge
    return _price(judge.endpoint, trajectories * judge.votes, _JUDGE_TOKENS + shape.tokens, _VERDICT_TOKENS)


def _price(endpoint: EndpointConfig, requests: float, read: float, written: float) -> float | None:
    """Money of requests with so many tokens each; None where the configuration names no price."""
    if not endpoint.price_in and not endpoint.price_out:
        return None
    return requests * (read * endpoint.price_in + written * endpoint.price_out) / 1e6
