"""The audit of files: the rewards of a stage, a second annotator on them, an earlier run, and the thresholds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

import pyarrow.parquet as pq

from steptool.config import AuditConfig, Config
from steptool.config.training import HAVE_NO_ADVANTAGES
from steptool.judge.annotator import count_reasons
from steptool.records import StepReward, Trajectory
from steptool.records.tables import iterate_records
from steptool.rewards.annotators import make_annotator, score_steps
from steptool.rewards.audit import audit
from steptool.rewards.audit_figures import Audit
from steptool.storage.query_table import QueryTable

LARGEST = 20_000
"""Most trajectories that an audit reads. Of a larger file it takes as many, evenly spaced."""

File = str | os.PathLike[str]


class AuditError(ValueError):
    """Rewards that the thresholds of `rewards.audit` refuse."""


def audit_files(queries: File, trajectories: File, rewards: File, config: Config, compare: File | None = None) -> Audit:
    """Audit the rewards of a file of trajectories.

    `compare` is another file of rewards. On the same trajectories it counts as one more annotator; on others it is the
    earlier run, in place of `rewards.audit.previous`. Raises ValueError where the rewards are about other trajectories.
    """
    query_table, episodes = QueryTable(queries), list(_sample(trajectories))
    ids = {t.trajectory_id for t in episodes}
    rows = list(_rows_of(rewards, ids))
    other = list(_rows_of(compare, ids)) if compare else []
    if other and {r.annotator for r in other} & {r.annotator for r in rows}:
        other = [replace(r, annotator=f"{r.annotator}, compared") for r in other]
    rows += other
    second = config.rewards.audit.second
    if second and second not in {r.annotator for r in rows}:
        rows += score_steps(query_table, episodes, make_annotator(second))
    previous = compare if compare and not other else config.rewards.audit.previous
    earlier = iterate_records(previous, StepReward) if previous else ()
    reward: Literal["step", "final"] = "step"
    if config.ppo.algorithm in HAVE_NO_ADVANTAGES or config.ppo.reward == "final":
        reward = "final"
    return audit(query_table, episodes, rows, config.rewards, earlier, reward)


def _sample(trajectories: File) -> Iterator[Trajectory]:
    step = -(-pq.read_metadata(trajectories).num_rows // LARGEST)
    return islice(iterate_records(trajectories, Trajectory), 0, None, max(1, step))


def _rows_of(rewards: File, trajectory_ids: set[str]) -> Iterator[StepReward]:
    return (row for row in iterate_records(rewards, StepReward) if row.trajectory_id in trajectory_ids)


def check_thresholds(result: Audit, config: AuditConfig, where: str) -> None:
    """Raise AuditError naming every figure that is beyond its threshold. A figure that is not defined passes."""
    faults = list(_faults(result, config))
    if faults:
        first = f"{where}: the rewards by '{result.annotator}' were refused, and PPO did not start"
        if result.reasons:
            first += f"; votes are missing: {count_reasons(result.reasons)}"
        raise AuditError("\n  ".join([first, *faults]))


def _faults(result: Audit, config: AuditConfig) -> Iterator[str]:
    if result.left_out > config.max_missing:
        shares = ", ".join(f"{share:.3f} of {name}" for name, share in result.missing.items() if share)
        yield (
            f"missing scores: {result.left_out:.3f} of the episodes cannot be learned from, above "
            f"rewards.audit.max_missing {config.max_missing} (missing: {shares}); ask the annotator again for what it "
            "left out, or take another one"
        )
    area, agreement, length = result.contribution_auroc(), result.contribution_kappa(), result.farming[0].correlation
    if area and area.value < config.min_auroc:
        yield (
            f"separation: the mean Contribution ranks a solved above an unsolved episode in {area.value:.3f} of the "
            f"pairs, below rewards.audit.min_auroc {config.min_auroc}; see the disputed steps and the tools in the "
            "reward report, and take another annotator or mend its rules"
        )
    if config.require_signal and result.step_rewards:
        yield from _signal_faults(result)
    if agreement and agreement.value < config.min_kappa:
        yield (
            f"agreement: kappa {agreement.value:.3f} with '{result.others[0]}' on Contribution is below "
            f"rewards.audit.min_kappa {config.min_kappa}; see the disputed steps in the reward report"
        )
    if length and length.value > config.max_farming:
        yield (
            f"farming: the correlation of the step rewards with the number of steps is {length.value:.3f}, above "
            f"rewards.audit.max_farming {config.max_farming}; lower rewards.step_weight, or set "
            "rewards.succ_calling: penalty or rewards.normalisation: trajectory"
        )


def _signal_faults(result: Audit) -> Iterator[str]:
    """Step rewards that say nothing: no call contributes, or unsolved episodes have the higher Contribution."""
    remedy = (
        "take another annotator (docs/annotators.md), learn from the outcome alone with ppo.reward: final, or set "
        "rewards.audit.require_signal: false"
    )
    if result.idle == 1 and result.solved_calls:
        yield (
            f"no signal: every Contribution is 0, also of the {result.solved_calls} successful calls in solved "
            f"episodes; {remedy}"
        )
    separation = result.contribution_separation()
    if separation.auroc and separation.is_reversed():
        yield (
            "no signal: the mean Contribution ranks unsolved above solved episodes, more clearly than by chance (AUROC "
            f"{separation.auroc.value:.3f} over {separation.auroc.n} episodes, where chance gives .5); {remedy}"
        )
