"""Learning: the trial before anything expensive, the choice of data that fits the base model, scores, advantages, and
the training of a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steptool.artifacts import lineage
from steptool.artifacts.metrics import Stopwatch, count_metrics, format_rate, say, total_counts
from steptool.check.memory import GIB, estimate, read_shape
from steptool.config import Config
from steptool.config.training import HAVE_NO_ADVANTAGES
from steptool.models.adapter import read_base_name
from steptool.models.load import LoadModel, load_codec, load_model, prepare_base, read_model_config
from steptool.pipeline.episodes import AuditedRound
from steptool.pipeline.tracking import check_trackers, track_configuration, track_round
from steptool.policies.trial import try_model
from steptool.records import Advantage, Cost, Metric, Query, StepReward, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.rewards import annotators
from steptool.rewards.compose import NO_REWARDS_SEEN, RunningScale, provenance
from steptool.training.algorithms import ALGORITHMS
from steptool.training.checkpoints import OnCheckpoint
from steptool.training.processes import PassLimit, processes
from steptool.training.rounds import load_actor, score_round, train_round
from steptool.training.warm_start import Lessons, encode_demonstrations, iterate_texts, select_fitting


@dataclass(frozen=True)
class Preparation:
    """The base model in its folder, and the part of the data that fits it."""

    model: Path
    queries: list[Query]
    """Those whose prompts fit the context."""
    lessons: Lessons
    """The demonstrations with their tokens, and those that the model cannot learn from."""


def prepare(
    queries: Sequence[Query], demonstrations: Sequence[Trajectory], config: Config, out_dir: str | Path
) -> Preparation:
    """Put the base model into a folder, play a turn with it, check that prompts fit, and encode the demonstrations.

    Raises ModelError for a model that cannot be used. Raises ValueError for a prompt that leaves no room for a step,
    and where a warm start is configured but no demonstration can be learned from.
    """
    check_trackers(config.tracking)
    track_configuration(config)
    texts = iterate_texts(queries, demonstrations)
    base = prepare_base(config.policy, texts, config.seed, out_dir)
    codec = load_codec(base, config.policy.chat_format, config.policy.chat_date)
    fitting = select_fitting(queries, codec, config)
    try_model(load_model(base), codec, fitting, config)
    lessons = encode_demonstrations(fitting, demonstrations, codec, config.policy.max_context, config.rollout.finish)
    stages = estimate(read_shape(read_model_config(base), "auto"), config, has_gpu=torch.cuda.is_available())
    say("prepare", f"memory by estimate: {', '.join(f'{s.stage} {s.total / GIB:.1f} GiB' for s in stages)}")
    say("prepare", f"base model '{config.policy.base}', {len(fitting)} of {len(queries)} prompts fit its context")
    for name, number in lessons.counts().items():
        say("prepare", f"{name}: {number}")
    lessons.check(config.warm_start)
    return Preparation(base, fitting, lessons)


def annotate(queries: Sequence[Query], trajectories: Sequence[Trajectory], config: Config) -> list[StepReward]:
    """Score each step of the trajectories by the configured annotator.

    Raises ValueError for a trajectory whose query is not among `queries`.
    """
    with annotators.open_annotator(config.rewards.annotator, config.rewards.judge) as annotator:
        return annotators.annotate(queries, trajectories, annotator)


def compute_advantages(
    policy_dir: str | Path,
    trajectories: Sequence[Trajectory],
    rewards: Sequence[StepReward],
    config: Config,
    *,
    reference_dir: str | Path = "",
    round_index: int = 0,
    scale: RunningScale = NO_REWARDS_SEEN,
) -> list[Advantage]:
    """The composed reward and the advantage of each step, as `train_round` would learn from them.

    `reference_dir` holds the model that the KL penalty refers to: by default the policy itself, which makes it 0.
    `scale` is that of the rounds before, for the normalisation "running".
    Raises ValueError for an algorithm without advantages, such as rft.
    """
    algorithm = ALGORITHMS[config.ppo.algorithm](config, round_index)
    if config.ppo.algorithm in HAVE_NO_ADVANTAGES:
        raise ValueError(f"ppo.algorithm: {config.ppo.algorithm} has no advantages; step_ppo has")
    policy, reference = Path(policy_dir), Path(reference_dir or policy_dir)
    selection = algorithm.select(trajectories, rewards, scale)
    if not selection.trajectories:
        return []
    actor = load_actor(policy, reference, config, algorithm)
    limit = PassLimit(config.ppo.micro_batch_size, config.ppo.tokens_per_pass, actor.packed)
    scores = score_round(actor, reference, selection, limit, None, algorithm)
    return algorithm.prepare(selection, scores, processes().device)


@dataclass(frozen=True)
class LearnedRound:
    """The next policy, what it learned from, the metrics of its training, the costs of the round, and its scale."""

    model: Path
    """A model folder, or with LoRA an adapter folder."""
    advantages: Path
    metrics: Path
    costs: Path
    """The costs of the whole round."""
    scale: Path
    """The running scale of rewards for the next round."""


def learn_round(
    policy: Path,
    reference: Path,
    audited: AuditedRound,
    config: Config,
    round_index: int,
    scale: Path | None,
    folder: Path,
    *,
    load: LoadModel = load_model,
    checkpoints: Path | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> LearnedRound:
    """Train the policy on its own episodes; the next one and the figures are written into folders below `folder`.

    `scale` is the running scale of the rounds before; the first round has none.
    """
    watch = Stopwatch("ppo", round_index)
    model, figures = folder / "policy", folder / "figures"
    model.mkdir(parents=True)
    figures.mkdir()
    episodes, rewards = read_records(audited.trajectories, Trajectory), read_records(audited.rewards, StepReward)
    result = train_round(
        policy,
        reference,
        episodes,
        rewards,
        config=config,
        round_index=round_index,
        out_dir=model,
        scale=RunningScale.load(scale) if scale else RunningScale(),
        load=load,
        checkpoints=checkpoints,
        on_checkpoint=on_checkpoint,
    )
    lineage.sign(
        model,
        policy,
        config.ppo.algorithm,
        [audited.trajectories, audited.rewards],
        round_index,
        result.note,
        provenance(rewards, config.rewards),
        read_base_name(model),
    )
    spent = [*read_records(audited.costs, Cost), watch.cost(result.tokens)]
    counts = count_metrics("ppo", {"episodes": len(episodes), "left out of training": result.left_out}, round_index)
    counts += count_metrics("annotate", total_counts(spent), round_index)
    say(
        "ppo",
        format_rate([t.solved for t in episodes]),
        seconds=sum(cost.seconds for cost in spent),
        round_index=round_index,
        rounds=config.ppo.rounds,
    )
    metrics = [*counts, *result.metrics]
    track_round(episodes, rewards, metrics, spent, config)
    return LearnedRound(
        model,
        write_records(figures / lineage.of_round("advantages", round_index), result.advantages, Advantage),
        write_records(figures / lineage.METRICS, metrics, Metric),
        write_records(figures / lineage.COSTS, spent, Cost),
        result.scale.save(figures / "scale.json"),
    )
