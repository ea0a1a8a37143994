"""One round of reinforcement: from a model folder and scored trajectories to the next model folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steptool.config import Config
from steptool.contracts import Row
from steptool.models import load_model
from steptool.trajectory import Trajectory
from steptool.training import model_folder
from steptool.training.experience import select
from steptool.training.logprobs import causal_lm
from steptool.training.step_ppo import StepPPOArguments, StepPPOTrainer
from steptool.training.value_head import ActorCritic, load_value_head, save_value_head

_NAMES = {"learning_rate", "loss", "grad_norm", "policy_loss", "value_loss", "kl", "clip_fraction", "entropy"}
_NAMES |= {"ratio_deviation", "explained_variance", "tokens"}


@dataclass(frozen=True)
class RoundResult:
    """What a round did."""

    metrics: list[Row]
    """Rows of METRICS, some for each optimizer step."""
    advantages: list[Row]
    """Rows of ADVANTAGES; empty for rejection fine-tuning."""
    left_out: int
    """Trajectories that were not trained on: without steps or rewards, or unsolved in rejection fine-tuning."""
    tokens: int
    """Action tokens trained on, each pass counted."""
    note: str = ""
    """What a reader should know, empty if all went as usual."""


def train_round(
    policy_dir: str | Path,
    reference_dir: str | Path,
    trajectories: Sequence[Trajectory],
    step_rewards: Sequence[npt.NDArray[np.floating] | None],
    *,
    config: Config,
    round: int,
    out_dir: str | Path,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 8,
) -> RoundResult:
    """Train the policy in `policy_dir` for one round of StepPPO and write the next model folder to `out_dir`.

    `step_rewards` holds for each trajectory the rewards [T] of its steps, or None where a needed score is missing: such
    trajectories are left out and counted. Value head and optimizer state go on from `policy_dir` where it has them.
    With `checkpoints` (a folder), the state is kept there every `checkpoint_every` optimizer steps, and the same call
    made again after an interruption goes on from there and ends with the same weights. Runs under
    torch.distributed as well, each process with the same arguments.
    """
    policy_dir, reference_dir, out_dir = Path(policy_dir), Path(reference_dir), Path(out_dir)
    episodes, left_out = select(trajectories, step_rewards)
    policy = model_folder.load_policy(policy_dir, reference_dir, config.policy, config.seed)
    head = load_value_head(policy_dir, causal_lm(policy).config.get_text_config().hidden_size, config.seed)
    trainer = StepPPOTrainer(
        ActorCritic(policy, head, detach_value=config.ppo.detach_value),
        StepPPOArguments.of_round(config, round, Path(checkpoints or out_dir), checkpoint_every if checkpoints else 0),
        episodes,
        config.credit,
        load_model(reference_dir) if config.policy.lora_rank == 0 else None,
    )
    model_folder.load_moments(trainer.adamw, trainer.model, policy_dir)
    seen = trainer.run_round()
    if trainer.args.should_save:
        model_folder.save_policy(policy, policy_dir, reference_dir, out_dir)
        save_value_head(head, out_dir)
        model_folder.save_moments(trainer.adamw, trainer.model, out_dir)
    trainer.accelerator.wait_for_everyone()
    metrics = metric_rows(trainer.state.log_history, "ppo", round)
    return RoundResult(metrics, list(seen.rows), left_out, episodes.total * config.ppo.epochs)


def metric_rows(history: Iterable[Mapping[str, Any]], stage: str, round: int) -> list[Row]:
    """The trainer's log as rows of METRICS; `update` counts the optimizer steps of the round from 0."""
    return [
        {"stage": stage, "round": round, "update": int(entry["step"]) - 1, "name": name, "value": float(value)}
        for entry in history
        if "learning_rate" in entry
        for name, value in entry.items()
        if name in _NAMES
    ]
