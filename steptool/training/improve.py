"""One round of whichever algorithm the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steptool.config import Config
from steptool.contracts.columns import Row
from steptool.records import Trajectory
from steptool.rewards.compose import step_rewards
from steptool.rewards.running_scale import RunningScale
from steptool.training.algorithms.rft import rejection_round
from steptool.training.metrics import RoundResult
from steptool.training.planned import OnCheckpoint
from steptool.training.rounds import train_round


def improve(
    policy_dir: str | Path,
    reference_dir: str | Path,
    trajectories: Sequence[Trajectory],
    reward_rows: Sequence[Row],
    *,
    config: Config,
    round: int,
    out_dir: str | Path,
    history: Sequence[Row] = (),
    checkpoints: str | Path | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> RoundResult:
    """Train the policy on trajectories and their rows of REWARDS; `out_dir` becomes the next model folder.

    step_ppo learns from the composed rewards of every step, rft from the trajectories that the annotator calls solved.
    `history` (rows of METRICS) holds the scale of the rounds before, for the normalisation "running"; the result's
    metrics hold that of this one. `checkpoints` and `on_checkpoint`: see `train_round`; rft keeps none.
    """
    if config.ppo.algorithm == "rft":
        solved = {row["trajectory_id"] for row in reward_rows if row["is_solved"] == 1.0}
        kept = [t.trajectory_id in solved for t in trajectories]
        return rejection_round(
            policy_dir, reference_dir, trajectories, kept, config=config, round=round, out_dir=out_dir
        )
    rewards, scale = step_rewards(trajectories, reward_rows, config.rewards, config.ppo.reward), None
    if config.rewards.normalisation == "running":
        scale = RunningScale.before(round, history).after(rewards)
        rewards = scale.apply(rewards)
    done = train_round(
        policy_dir,
        reference_dir,
        trajectories,
        rewards,
        config=config,
        round=round,
        out_dir=out_dir,
        checkpoints=checkpoints,
        on_checkpoint=on_checkpoint,
    )
    return replace(done, metrics=[*done.metrics, *scale.rows(round)]) if scale else done
