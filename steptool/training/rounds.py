"""One round of reinforcement: from a model folder and scored trajectories to the next model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steptool.config import Config
from steptool.models import folder as model_folder
from steptool.models.load import load_model
from steptool.models.logprobs import causal_lm
from steptool.models.value_head import ActorCritic, load_value_head, save_value_head
from steptool.records import Trajectory
from steptool.training.algorithms.step_ppo import StepPPOArguments, StepPPOTrainer
from steptool.training.experience import select
from steptool.training.metrics import RoundResult, metric_rows
from steptool.training.planned import OnCheckpoint


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
    on_checkpoint: OnCheckpoint | None = None,
) -> RoundResult:
    """Train the policy in `policy_dir` for one round of StepPPO and write the next model folder to `out_dir`.

    `step_rewards` holds for each trajectory the rewards [T] of its steps, or None where a needed score is missing: such
    trajectories are left out and counted. Value head and optimizer state go on from `policy_dir` where it has them.
    With `checkpoints` (a folder), the state is kept there every `checkpoint_every` optimizer steps, and the same call
    made again after an interruption goes on from there and ends with the same weights; `on_checkpoint` is told of each.
    Runs under torch.distributed as well, each process with the same arguments.
    """
    policy_dir, reference_dir, out_dir = Path(policy_dir), Path(reference_dir), Path(out_dir)
    episodes, left_out = select(trajectories, step_rewards)
    policy = model_folder.load_policy(policy_dir, reference_dir, config.policy, config.seed)
    head = load_value_head(policy_dir, causal_lm(policy).config.get_text_config().hidden_size, config.seed)
    trainer = StepPPOTrainer(
        ActorCritic(policy, head, detach_value=config.ppo.detach_value, temperature=config.rollout.temperature),
        StepPPOArguments.of_round(config, round, Path(checkpoints or out_dir), checkpoint_every if checkpoints else 0),
        episodes,
        config.credit,
        load_model(reference_dir) if config.policy.lora_rank == 0 else None,
        on_checkpoint,
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
