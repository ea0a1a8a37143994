"""One round of reinforcement: from a model folder and scored trajectories to the next one, or to an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from steptool.artifacts.metrics import update_metrics
from steptool.config import Config
from steptool.models.actor import Actor, load_value_head, save_value_head
from steptool.models.adapter import adapt, find_weights, is_adapter, save_policy
from steptool.models.load import LoadModel, load_model, load_tokenizer
from steptool.models.logprobs import unwrap_model
from steptool.models.optimizer import FILE, load_moments, make_adamw, save_moments
from steptool.models.sharding import (
    is_sharded,
    load_sharded_actor,
    load_sharded_moments,
    save_sharded_model,
    save_sharded_moments,
)
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import NO_REWARDS_SEEN, RunningScale
from steptool.training.algorithms import ALGORITHMS
from steptool.training.algorithms.base import Algorithm, Selection
from steptool.training.algorithms.eto import ExplorationPreference, PreferenceTrainer
from steptool.training.processes import PassLimit, cuts_models, get_processes, pass_on, share_folder
from steptool.training.scores import (
    Scores,
    check_mismatch,
    compute_log_probs,
    fingerprint,
    measure_mismatch,
    read_engine_log_probs,
    score,
)
from steptool.training.trainer import CheckpointFolder, Objective, OnCheckpoint, Settings, Trainer


@dataclass(frozen=True)
class RoundResult:
    """What a round did."""

    metrics: list[Metric]
    """Some for each optimizer step."""
    advantages: list[Advantage]
    """One for each step; empty where the algorithm has none."""
    left_out: int
    """Trajectories that were not trained on: without steps or rewards, or unsolved in rejection fine-tuning."""
    tokens: int
    """Action tokens trained on, each pass counted."""
    scale: RunningScale = NO_REWARDS_SEEN
    """The scale of rewards with those of this round."""
    note: str = ""
    """What a reader should know, empty if all went as usual."""


def train_round(
    policy_dir: str | Path,
    reference_dir: str | Path,
    trajectories: Sequence[Trajectory],
    rewards: Sequence[StepReward],
    *,
    config: Config,
    round_index: int,
    out_dir: str | Path,
    scale: RunningScale = NO_REWARDS_SEEN,
    load: LoadModel = load_model,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 8,
    on_checkpoint: OnCheckpoint | None = None,
) -> RoundResult:
    """Train the policy on trajectories and the rewards of their steps; `out_dir` becomes the next model folder.

    With LoRA it becomes an adapter folder over the model of `reference_dir`, and so may `policy_dir` be one.

    `config.ppo.algorithm` names the algorithm. Value head and optimizer state go on from `policy_dir` where it has
    them. `scale` is that of the rounds before, for the normalisation "running"; the result has that of this one. Where
    an algorithm finds nothing to learn from, the policy is passed on unchanged, and the result's note says so.
    `load` gives the model of a folder, whose weights training changes in place; models that are cut over processes are
    read from their files.

    With `checkpoints` (a folder), the state is kept there every `checkpoint_every` optimizer steps, and the same call
    made again after an interruption goes on from there and ends with the same weights. `on_checkpoint` is called after
    each of these. Runs under torch.distributed as well, each process with the same arguments.
    """
    policy_dir, reference_dir, out_dir = Path(policy_dir), Path(reference_dir), Path(out_dir)
    algorithm = ALGORITHMS[config.ppo.algorithm](config, round_index)
    selection = algorithm.select(trajectories, rewards, scale)
    if not selection.trajectories:
        pass_on(policy_dir, out_dir)
        note = f"{selection.note}; the policy is passed on unchanged"
        return RoundResult(selection.metrics, [], selection.left_out, 0, selection.scale, note)
    if cuts_models(config.ppo.sharding):
        out_dir = share_folder(out_dir)
        checkpoints = share_folder(Path(checkpoints)) if checkpoints else None
    digest = fingerprint(selection.trajectories, selection.rewards)
    checkpoint_folder = (
        CheckpointFolder(Path(checkpoints), checkpoint_every, digest, on_checkpoint) if checkpoints else None
    )
    actor = load_actor(policy_dir, reference_dir, config, algorithm, load)
    optimizer = make_optimizer(actor, algorithm, policy_dir)
    if not algorithm.trains_policy:
        actor.policy.requires_grad_(False)
    limit = PassLimit(config.ppo.micro_batch_size, config.ppo.tokens_per_pass, actor.packed)
    advantages: list[Advantage] = []
    scores = None
    if algorithm.needs_scores:
        scores = score_round(actor, reference_dir, selection, limit, checkpoint_folder, algorithm)
    mismatch = compare_with_engine(actor, selection, limit, algorithm, scores)
    if scores:
        advantages = algorithm.prepare(selection, scores, get_processes().device)
    weights = find_weights(policy_dir, reference_dir, config.policy)
    trainer = make_trainer(actor, optimizer, algorithm, selection.trajectories, limit, checkpoint_folder, weights)
    steps = algorithm.steps(trainer.lengths)
    log = trainer.train(steps)
    save_actor(actor, optimizer, policy_dir, reference_dir, out_dir)
    metrics = [*update_metrics(log, algorithm.stage, round_index), *mismatch, *selection.metrics]
    tokens = int(sum(trainer.action_tokens[rows].sum() for rows in steps))
    return RoundResult(metrics, advantages, selection.left_out, tokens, selection.scale)


def load_actor(
    policy_dir: Path, reference_dir: Path, config: Config, algorithm: Algorithm, load: LoadModel = load_model
) -> Actor:
    """The policy of a model folder, with its value head where the algorithm needs one."""
    folder = find_weights(policy_dir, reference_dir, config.policy)
    actor = load_weights(folder, algorithm, trained=not config.policy.lora_rank, load=load)
    if config.policy.lora_rank:
        actor.policy = adapt(actor.policy, policy_dir, config.policy, config.seed).eval()
    if algorithm.needs_value_head:
        hidden_size = unwrap_model(actor.policy).config.get_text_config().hidden_size
        actor.head = load_value_head(policy_dir, hidden_size, config.seed).to(get_processes().device)
    if config.ppo.gradient_checkpointing:
        actor.checkpoint_activations()
    if config.ppo.compile:
        actor.compile_layers()
    return actor


def load_weights(folder: Path, algorithm: Algorithm, *, trained: bool, load: LoadModel = load_model) -> Actor:
    """The model of a folder, whole or this process's part of it, without value head and adapter."""
    ppo = algorithm.config.ppo
    options: dict[str, Any] = {"detach_value": ppo.detach_value, "temperature": algorithm.temperature}
    if cuts_models(ppo.sharding):
        return load_sharded_actor(folder, get_processes().num_processes, trained=trained, **options)
    return Actor(load(folder), **options)


def make_optimizer(actor: Actor, algorithm: Algorithm, policy_dir: Path) -> torch.optim.Optimizer:
    """The optimizer of policy and value head, with the state that a round before has left."""
    ppo = algorithm.config.ppo
    optimizer = make_adamw(
        actor.policy, algorithm.learning_rate, actor.head, ppo.value_learning_rate, moments=ppo.moments
    )
    load_state(optimizer, actor, policy_dir)
    return optimizer


def make_trainer(
    actor: Actor,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    trajectories: Sequence[Trajectory],
    limit: PassLimit,
    checkpoints: CheckpointFolder | None,
    weights: Path,
) -> Trainer | PreferenceTrainer:
    """What makes the optimizer steps of an algorithm. `weights`: the folder whose tokenizer TRL reads."""
    if isinstance(algorithm, Objective):
        settings = Settings(limit, algorithm.config.ppo.max_grad_norm)
        return Trainer(actor, optimizer, algorithm, trajectories, settings, checkpoints)
    if isinstance(algorithm, ExplorationPreference):
        return PreferenceTrainer(actor, optimizer, algorithm, trajectories, load_tokenizer(weights), checkpoints)
    raise TypeError(f"{type(algorithm).__name__} has neither a loss (Objective) nor a trainer of its own")


def load_state(optimizer: torch.optim.Optimizer, actor: Actor, policy_dir: Path) -> None:
    """The optimizer's state that a round before has left in the policy's folder, if any."""
    if is_sharded(actor) and (policy_dir / FILE).is_file():
        load_sharded_moments(optimizer, actor, (policy_dir / FILE).parent)
    elif not is_sharded(actor):
        load_moments(optimizer, actor, policy_dir)


def save_actor(
    actor: Actor, optimizer: torch.optim.Optimizer, policy_dir: Path, reference_dir: Path, out_dir: Path
) -> None:
    """Write the next model folder: weights and tokenizer, or the adapter, and what the next round goes on from.

    The moments of an adapter are handed over in bfloat16, because they would be two thirds of the bytes.
    """
    if is_sharded(actor) and not isinstance(actor.policy, PeftModel):
        save_sharded_model(actor.policy, policy_dir, out_dir)
        save_sharded_moments(optimizer, actor, out_dir)
    elif get_processes().is_main_process:
        save_policy(actor.policy, policy_dir, reference_dir, out_dir)
        save_moments(optimizer, actor, out_dir, half=is_adapter(out_dir))
    if actor.head is not None and get_processes().is_main_process:
        save_value_head(actor.head, out_dir)
    get_processes().wait_for_everyone()


def compare_with_engine(
    actor: Actor, selection: Selection, limit: PassLimit, algorithm: Algorithm, scores: Scores | None
) -> list[Metric]:
    """Metrics of how far the engine's log-probabilities are from those of training; empty where none are stored.

    Without scores the actor computes them. Raises MismatchError where both are further apart than `ppo.max_mismatch`.
    """
    config, engine_N = algorithm.config, read_engine_log_probs(selection.trajectories)
    if engine_N is None:
        return []
    ppo, temperature = config.ppo, config.rollout.temperature
    own_N = scores.log_probs_N if scores else compute_log_probs(actor, selection.trajectories, limit, temperature)
    mismatch = measure_mismatch(own_N, engine_N, ppo.importance_cap)
    check_mismatch(mismatch, ppo, algorithm.round_index)
    return mismatch.metrics(algorithm.stage, algorithm.round_index)


def score_round(
    actor: Actor,
    reference_dir: Path,
    selection: Selection,
    limit: PassLimit,
    checkpoints: CheckpointFolder | None,
    algorithm: Algorithm,
) -> Scores:
    """Score the action tokens, or read the scores that an earlier attempt kept beside its checkpoints."""
    stored = Scores.load(checkpoints.path, checkpoints.fingerprint) if checkpoints else None
    if stored:
        return stored
    adapted = isinstance(actor.policy, PeftModel)
    reference = None if adapted else load_weights(reference_dir, algorithm, trained=False)
    scores = score(actor, reference, selection.trajectories, limit)
    if checkpoints and get_processes().is_main_process:
        scores.save(checkpoints.path, checkpoints.fingerprint)
    get_processes().wait_for_everyone()
    return scores
