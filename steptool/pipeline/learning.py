"""Learning from rounds: scores, advantages, the training of a round, and several rounds in one process.

In one process each round is played, scored, audited and learned from as in pods of its own. Sampling and training take
turns: our own sampler on the very weights that are trained (`SharedModels`), vLLM on weights of its own, which each
round replaces in place (`RestingEngine`). After each round the state is kept, so that another attempt continues from
it.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from steptool.artifacts import lineage
from steptool.artifacts.metrics import Stopwatch, average_known, count_metrics, format_rate, say, total_counts
from steptool.config import Config
from steptool.models.actor import free_gpu_memory
from steptool.models.adapter import is_adapter, read_base_name
from steptool.models.load import LoadModel, load_model
from steptool.pipeline.episodes import (
    EPISODES,
    AuditedRound,
    TaskSet,
    audit_round,
    open_learner,
    play_shard,
    score_file,
)
from steptool.pipeline.tracking import track_round
from steptool.policies.vllm import RestingEngine
from steptool.records import Advantage, Cost, Metric, Query, StepReward, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.rewards import annotators
from steptool.rewards.compose import NO_REWARDS_SEEN, RunningScale, describe_provenance
from steptool.training.algorithms import ALGORITHMS
from steptool.training.processes import PassLimit, get_processes
from steptool.training.rounds import RoundResult, load_actor, score_round, train_round
from steptool.training.trainer import OnCheckpoint, find_last_checkpoint, seal

_JOINED, _FIGURES, _POLICY, _SCALE, _PAGE = "joined", "figures", "policy", "scale.json", "audit.html"
"""Names of the files and folders of a finished round."""


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
    if not algorithm.needs_scores:
        raise ValueError(f"ppo.algorithm: {config.ppo.algorithm} has no advantages; step_ppo has")
    policy, reference = Path(policy_dir), Path(reference_dir or policy_dir)
    selection = algorithm.select(trajectories, rewards, scale)
    if not selection.trajectories:
        return []
    actor = load_actor(policy, reference, config, algorithm)
    limit = PassLimit(config.ppo.micro_batch_size, config.ppo.tokens_per_pass, actor.packed)
    scores = score_round(actor, reference, selection, limit, None, algorithm)
    return algorithm.prepare(selection, scores, get_processes().device)


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
    model, figures = folder / _POLICY, folder / _FIGURES
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
        describe_provenance(rewards, config.rewards),
        read_base_name(model),
    )
    metrics, costs = _collect_figures(audited, result, len(episodes), watch, round_index)
    say(
        "ppo",
        describe_outcome(episodes, rewards),
        seconds=sum(cost.seconds for cost in costs),
        round_index=round_index,
        rounds=config.ppo.rounds,
    )
    track_round(episodes, rewards, metrics, costs, config)
    return LearnedRound(
        model,
        write_records(figures / lineage.name_round_file("advantages", round_index), result.advantages, Advantage),
        write_records(figures / lineage.METRICS, metrics, Metric),
        write_records(figures / lineage.COSTS, costs, Cost),
        result.scale.save(figures / _SCALE),
    )


def _collect_figures(
    audited: AuditedRound, result: RoundResult, episodes: int, watch: Stopwatch, round_index: int
) -> tuple[list[Metric], list[Cost]]:
    """The metrics of a round, its counts first, and its costs, those of learning last."""
    costs = [*read_records(audited.costs, Cost), watch.measure_cost(result.tokens)]
    counts = count_metrics("ppo", {"episodes": episodes, "left out of training": result.left_out}, round_index)
    counts += count_metrics("annotate", total_counts(costs), round_index)
    return [*counts, *result.metrics], costs


def describe_outcome(episodes: Sequence[Trajectory], rewards: Sequence[StepReward]) -> str:
    """The pass rate by the environment's verdicts; where it gives none, how the annotator scored the outcomes."""
    score = average_known(reward.is_solved for reward in rewards)
    if score is not None and all(episode.solved is None for episode in episodes):
        return f"IsSolved {score:.3f} by the annotator {rewards[0].annotator}"
    return format_rate([episode.solved for episode in episodes])


class SharedModels:
    """Models by their folder, each read from its files once.

    Each caller gets a module of its own over the same weights. Adapters, checkpointing or another attention of one
    module do not show in the others; a weight that training changes has changed for all.
    """

    def __init__(self) -> None:
        self._models: dict[str, PreTrainedModel] = {}

    def load(self, folder: str | os.PathLike[str]) -> PreTrainedModel:
        """A module over the weights of a folder, all of which may be trained."""
        place = os.path.realpath(folder)
        if place not in self._models:
            self._models[place] = load_model(folder)
        return share_weights(self._models[place]).requires_grad_(True)

    def move(self, folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Note that the weights of one folder have become those of another. Unknown folders stay unknown."""
        if model := self._models.pop(os.path.realpath(folder), None):
            self._models[os.path.realpath(target)] = model

    def clear(self) -> None:
        """Keep no weights, because an engine with weights of its own needs the room."""
        self._models.clear()

    def hand_over(self) -> None:
        """Free what one side has left behind, such as keys and values, before the other side's turn."""
        free_gpu_memory()


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a module that holds the same parameters and buffers."""
    tensors: list[nn.Parameter | torch.Tensor] = [*model.parameters(), *model.buffers()]
    shared_model: PreTrainedModel = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return shared_model


@dataclass(frozen=True)
class RoundInputs:
    """The inputs of all rounds of a stage."""

    start: Path
    """The model before the first round of the run. It is the reference, and the base of adapters."""
    tasks: TaskSet
    queries: Path
    config: Config


@dataclass(frozen=True)
class FinishedRound:
    """The results of a round."""

    audited: AuditedRound
    learned: LearnedRound
    """Of several rounds only the last one keeps its model."""
    page: str
    """The page of the audit."""


def play_and_learn(
    inputs: RoundInputs,
    first: int,
    count: int,
    policy: Path,
    scale: Path | None,
    folder: Path,
    *,
    on_checkpoint: OnCheckpoint | None = None,
    show: Callable[[str, str], None] = lambda name, page: None,
) -> list[FinishedRound]:
    """Make `count` rounds from the index `first` on, starting with `policy` and the running scale of the round before.

    `folder` keeps the state after each round as a checkpoint; the same call goes on from there after an interruption.
    `on_checkpoint` is called after each. `show` takes name and content of the page of each round's audit. Raises
    AuditError where the rewards of a round are beyond a threshold; the rounds before it are kept.
    """
    with closing(RestingEngine()) as resting:
        return _make_rounds(inputs, range(first, first + count), policy, scale, folder, resting, on_checkpoint, show)


def _make_rounds(
    inputs: RoundInputs,
    rounds: range,
    policy: Path,
    scale: Path | None,
    folder: Path,
    resting: RestingEngine,
    on_checkpoint: OnCheckpoint | None,
    show: Callable[[str, str], None],
) -> list[FinishedRound]:
    first = rounds.start
    models, checkpoint = SharedModels(), find_last_checkpoint(folder)
    results = _read_rounds(checkpoint, first) if checkpoint else []
    for round_index, result in enumerate(results, first):
        show(_name_page(round_index), result.page)
    for round_index in rounds[len(results) :]:
        if results:
            policy, scale = results[-1].learned.model, results[-1].learned.scale
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        _make_round(inputs, round_index, policy, scale, work, models, resting, show)
        checkpoint = _keep(work, folder, checkpoint, round_index - first)
        results = _read_rounds(checkpoint, first)
        if not is_adapter(results[-1].learned.model):
            models.move(policy, results[-1].learned.model)
        if on_checkpoint:
            on_checkpoint()
    return results


def _make_round(
    inputs: RoundInputs,
    round_index: int,
    policy: Path,
    scale: Path | None,
    work: Path,
    models: SharedModels,
    resting: RestingEngine,
    show: Callable[[str, str], None],
) -> None:
    """Make one round in the folder `work`."""
    start, config, queries = inputs.start, inputs.config, inputs.queries
    shards = _play_shards(inputs, round_index, policy, work, models, resting)
    models.hand_over()
    scores = [
        score_file(shard / EPISODES, queries, config, round_index, _make_folder(work, f"scores{number}"))
        for number, shard in enumerate(shards)
    ]

    def show_page(page: str) -> None:
        (work / _PAGE).write_text(page, encoding="utf-8")
        show(_name_page(round_index), page)

    audited = audit_round(shards, scores, queries, config, round_index, _make_folder(work, _JOINED), show_page)
    learn_round(policy, start, audited, config, round_index, scale, work, load=models.load)
    if config.rollout.engine == "vllm":
        models.clear()
    models.hand_over()
    for part in (*shards, *scores):
        shutil.rmtree(part)


def _play_shards(
    inputs: RoundInputs, round_index: int, policy: Path, work: Path, models: SharedModels, resting: RestingEngine
) -> list[Path]:
    """Play the episodes of a round; nothing of the policy that plays them stays in memory."""
    config, watch, shards = inputs.config, Stopwatch("rollout", round_index), []
    with open_learner(policy, inputs.start, config, round_index, models.load, resting) as player:
        for shard in range(config.rollout.shards):
            target = _make_folder(work, f"shard{shard}")
            shards.append(play_shard(player, inputs.tasks, config, round_index, shard, target, watch))
            watch = Stopwatch("rollout", round_index)
    return shards


def _keep(work: Path, folder: Path, before: Path | None, number: int) -> Path:
    """Make the checkpoint after round `number` of the stage out of the one before and of the new round."""
    target = folder / f"checkpoint-{number + 1}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    if before:
        for old in sorted(before.glob("round_*")):
            ignored = shutil.ignore_patterns(_POLICY)
            shutil.copytree(old, target / old.name, ignore=ignored)
    work.rename(target / f"round_{number:03d}")
    seal(target)
    if before:
        shutil.rmtree(before)
    return target


def _read_rounds(checkpoint: Path, first: int) -> list[FinishedRound]:
    """The rounds of a checkpoint, by their files."""
    return [
        FinishedRound(
            AuditedRound(
                folder / _JOINED / lineage.name_round_file("trajectories", round_index),
                folder / _JOINED / lineage.name_round_file("rewards", round_index),
                folder / _JOINED / lineage.COSTS,
            ),
            LearnedRound(
                folder / _POLICY,
                folder / _FIGURES / lineage.name_round_file("advantages", round_index),
                folder / _FIGURES / lineage.METRICS,
                folder / _FIGURES / lineage.COSTS,
                folder / _FIGURES / _SCALE,
            ),
            (folder / _PAGE).read_text(encoding="utf-8"),
        )
        for round_index, folder in enumerate(sorted(checkpoint.glob("round_*")), first)
    ]


def _make_folder(work: Path, name: str) -> Path:
    (work / name).mkdir(parents=True)
    return work / name


def _name_page(round_index: int) -> str:
    return f"rewards of round {round_index + 1}"
