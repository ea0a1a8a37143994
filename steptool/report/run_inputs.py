"""The inputs of a training run's report: rows of the contracts, episodes, costs and notes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

import numpy as np

from steptool.evaluation.compare import GREEDY, SAMPLED
from steptool.evaluation.results import Results, compute_results
from steptool.records import Advantage, Cost, Evaluation, Metric, Query, StepReward, StepStatus, Trajectory
from steptool.rewards.audit_figures import Audit
from steptool.rewards.farming import FarmingPoint, Rewards, idle_share

MODELS = ("base", "warm_start", "steptool")
"""Models of a report, in the order of their making."""


class RoundSummary(TypedDict):
    """Figures of the rollouts of one round. A mean over nothing is None."""

    round: int
    episodes: int
    pass_rate: float | None
    """Mean of the environment's verdicts."""
    mean_steps: float | None
    """Assistant steps per episode, Finish included."""
    invalid_call_rate: float | None
    """Share of the calls (Finish apart) that failed."""
    mean_reward: float | None
    """Sum of the composed step rewards per episode."""
    succ_calling: float | None
    """Mean over the steps that have the component."""
    contribution: float | None
    is_solved: float | None
    idle_call_rate: float | None
    """Share of the steps before the last whose contribution is 0: calls that added nothing."""
    missing: int
    """Episodes without a composed reward: a score that it needs is missing."""


@dataclass(frozen=True)
class ScoredEpisode:
    """A trajectory with the rewards by one annotator and the advantages that there are for its steps."""

    trajectory: Trajectory
    rewards: Sequence[StepReward] = ()
    advantages: Sequence[Advantage] = ()
    passed: float | None = None
    """The verdict of the evaluation; where it is None, the environment's own."""

    @property
    def verdict(self) -> float | None:
        """How far the task was solved, in [0, 1]; None if it is unknown."""
        return self.trajectory.solved if self.passed is None else self.passed


@dataclass(frozen=True)
class EpisodePair:
    """The same task before and after training."""

    query: Query
    before: ScoredEpisode | None
    after: ScoredEpisode | None


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows."""

    title: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's configuration as plain data."""
    evaluations: Sequence[Evaluation] = ()
    """Rows of EVALUATIONS of the models named in MODELS."""
    metrics: Sequence[Metric] = ()
    rollouts: Sequence[RoundSummary] = ()
    farming: Mapping[int, Sequence[FarmingPoint]] = field(default_factory=dict)
    """Episodes by round; the first and the last round are compared."""
    audits: Mapping[int, Audit] = field(default_factory=dict)
    """The audit of the rewards of each round."""
    costs: Sequence[Cost] = ()
    examples: Sequence[EpisodePair] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Counts of what ingestion read, kept and dropped; may be nested."""
    notes: Sequence[str] = ()
    """Plain sentences that a reader should see, such as warnings."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files beside the report that it links to: path relative to the report, and what the file is."""

    @cached_property
    def results(self) -> Results:
        """The measures of the models, and the result of training against the warm start."""
        rows = sorted((r for r in self.evaluations if r.model in MODELS), key=lambda r: MODELS.index(r.model))
        draws = int((self.config.get("evaluation") or {}).get("bootstrap", 10_000))
        return compute_results(
            rows,
            draws=draws,
            seed=int(self.config.get("seed", 0)),
            pairs=[("steptool", "warm_start"), ("steptool", "base")],
            decodings=(GREEDY, SAMPLED),
        )


def summarise_round(
    trajectories: Sequence[Trajectory], rewards: Iterable[StepReward], step_rewards: Sequence[Rewards | None]
) -> RoundSummary:
    """Summary of a round's episodes.

    `rewards` are those by one annotator; `step_rewards[i]` are the composed rewards [T] of
    `trajectories[i]`, None where a score is missing. Raises ValueError if the two do not have the same length.
    """
    scores = _scores(trajectories, rewards)
    calls = [s for t in trajectories for s in t.steps if s.status is not StepStatus.FINISH]
    before_last = [r.contribution for t in trajectories for r in scores[t.trajectory_id] if r.step < len(t.steps) - 1]
    composed = [r for _, r in zip(trajectories, step_rewards, strict=True) if r is not None]
    every = [r for rows in scores.values() for r in rows]
    return {
        "round": trajectories[0].round if trajectories else -1,
        "episodes": len(trajectories),
        "pass_rate": mean(t.solved for t in trajectories),
        "mean_steps": mean(len(t.steps) for t in trajectories),
        "invalid_call_rate": mean(float(s.status is not StepStatus.OK) for s in calls),
        "mean_reward": mean(float(np.sum(r)) for r in composed),
        "succ_calling": mean(r.succ_calling for r in every),
        "contribution": mean(r.contribution for r in every),
        "is_solved": mean(r.is_solved for r in every),
        "idle_call_rate": idle_share(before_last),
        "missing": len(trajectories) - len(composed),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not missing; None if all are."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else None


def _scores(trajectories: Sequence[Trajectory], rewards: Iterable[StepReward]) -> dict[str, list[StepReward]]:
    scores: dict[str, list[StepReward]] = {t.trajectory_id: [] for t in trajectories}
    for reward in rewards:
        if reward.trajectory_id in scores:
            scores[reward.trajectory_id].append(reward)
    return scores
