"""Rejection fine-tuning, the baseline without a value function: imitate the trajectories that were solved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments

from steptool.config import Config
from steptool.contracts.columns import Row
from steptool.models import folder as model_folder
from steptool.models.batch import updates_per_epoch
from steptool.records import Trajectory
from steptool.training.algorithms.step_ppo import learning_rate
from steptool.training.algorithms.supervised import SupervisedTrainer
from steptool.training.metrics import RoundResult, metric_rows
from steptool.training.planned import batch_arguments, common_arguments


def rejection_round(
    policy_dir: str | Path,
    reference_dir: str | Path,
    trajectories: Sequence[Trajectory],
    solved: Sequence[bool],
    *,
    config: Config,
    round: int,
    out_dir: str | Path,
) -> RoundResult:
    """Fine-tune the policy in `policy_dir` on the solved trajectories and write the next model folder to `out_dir`.

    Takes as many optimizer steps, of the same size and at the same learning rates, as StepPPO would take on all of the
    round's trajectories; the optimizer's state goes on from `policy_dir`. Where nothing was solved the policy is passed
    on unchanged, and the result's note says so.
    """
    policy_dir, reference_dir, out_dir = Path(policy_dir), Path(reference_dir), Path(out_dir)
    ppo = config.ppo
    kept = [t for t, good in zip(trajectories, solved, strict=True) if good and t.spans]
    left_out = len(trajectories) - len(kept)
    if not kept:
        shutil.copytree(policy_dir, out_dir, dirs_exist_ok=True)
        note = f"round {round}: none of {len(trajectories)} trajectories was solved; the policy is passed on unchanged"
        return RoundResult([_kept_row(round, 0)], [], left_out, 0, note)
    steps = ppo.epochs * updates_per_epoch(len(trajectories), ppo.batch_size)
    policy = model_folder.load_policy(policy_dir, reference_dir, config.policy, config.seed)
    optimizer = model_folder.adamw(policy, learning_rate(config, round))
    args = TrainingArguments(
        **common_arguments(out_dir, 0, config.seed + round),
        **batch_arguments(ppo.batch_size, ppo.micro_batch_size),
        max_steps=steps,
        lr_scheduler_type="constant",
        learning_rate=learning_rate(config, round),
        max_grad_norm=ppo.max_grad_norm,
    )
    trainer = SupervisedTrainer(policy, args, kept, optimizer, ppo.batch_size)
    model_folder.load_moments(optimizer, trainer.model, policy_dir)
    trainer.train()
    if trainer.args.should_save:
        model_folder.save_policy(policy, policy_dir, reference_dir, out_dir)
        model_folder.save_moments(optimizer, trainer.model, out_dir)
    trainer.accelerator.wait_for_everyone()
    tokens = int(sum(trainer.action_tokens[rows].sum() for rows in trainer.steps()))
    metrics = [*metric_rows(trainer.state.log_history, "rft", round), _kept_row(round, len(kept))]
    return RoundResult(metrics, [], left_out, tokens)


def _kept_row(round: int, kept: int) -> Row:
    return {"stage": "rft", "round": round, "update": 0, "name": "kept_trajectories", "value": float(kept)}
