"""The inputs of a training run's report, read from the folder of the run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np

from steptool.artifacts import lineage as names
from steptool.artifacts.metrics import average_known, name_lost_groups, select_counts
from steptool.config import Config, load_config
from steptool.evaluation.compare import GREEDY, SAMPLED
from steptool.evaluation.measures import find_verdict
from steptool.evaluation.results import Results, compute_results
from steptool.records import Advantage, Cost, Evaluation, Metric, Query, StepReward, StepStatus, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from steptool.rewards.audit import audit_files
from steptool.rewards.audit_figures import Audit
from steptool.rewards.compose import NO_REWARDS_SEEN, compose_round
from steptool.rewards.statistics import FarmingPoint, Rewards, collect_farming_points, idle_share

MODELS = ("base", "warm_start", "steptool")
"""Models of a report, in the order in which a run makes them."""


class RoundSummary(TypedDict):
    """Figures of the rollouts of one round. A mean over nothing is None."""

    round: int
    episodes: int
    verdicts: int
    """Episodes with a verdict."""
    pass_rate: float | None
    """Mean of the verdicts."""
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
    """A trajectory with the rewards by one annotator, and the advantages of its steps if they are known."""

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
    queries: Sequence[Query] = ()
    """Queries of all splits, to name the groups that were not evaluated."""
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
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files and folders beside the report that it links to: what they are, and their paths relative to the report."""

    @cached_property
    def results(self) -> Results:
        """The measures of the models, and the result of training against the warm start."""
        rows = sorted((r for r in self.evaluations if r.model in MODELS), key=lambda r: MODELS.index(r.model))
        draws = int((self.config.get("evaluation") or {}).get("bootstrap", 10_000))
        return compute_results(
            rows,
            queries=self.queries,
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
    scores = _group_scores(trajectories, rewards)
    calls = [s for t in trajectories for s in t.steps if s.status is not StepStatus.FINISH]
    before_last = [r.contribution for t in trajectories for r in scores[t.trajectory_id] if r.step < len(t.steps) - 1]
    known_rewards = [r for _, r in zip(trajectories, step_rewards, strict=True) if r is not None]
    every = [r for rows in scores.values() for r in rows]
    return {
        "round": trajectories[0].round if trajectories else -1,
        "episodes": len(trajectories),
        "verdicts": sum(t.solved is not None for t in trajectories),
        "pass_rate": average_finite(t.solved for t in trajectories),
        "mean_steps": average_finite(len(t.steps) for t in trajectories),
        "invalid_call_rate": average_finite(float(s.status is not StepStatus.OK) for s in calls),
        "mean_reward": average_finite(float(np.sum(r)) for r in known_rewards),
        "succ_calling": average_finite(r.succ_calling for r in every),
        "contribution": average_finite(r.contribution for r in every),
        "is_solved": average_finite(r.is_solved for r in every),
        "idle_call_rate": idle_share(before_last),
        "missing": len(trajectories) - len(known_rewards),
    }


def average_finite(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values: a diverged training leaves others in its metrics. None without any."""
    return average_known(v for v in values if v is not None and math.isfinite(v))


def _group_scores(trajectories: Sequence[Trajectory], rewards: Iterable[StepReward]) -> dict[str, list[StepReward]]:
    scores: dict[str, list[StepReward]] = {t.trajectory_id: [] for t in trajectories}
    for reward in rewards:
        if reward.trajectory_id in scores:
            scores[reward.trajectory_id].append(reward)
    return scores


S = TypeVar("S", StepReward, Advantage)

FILES = {
    "all held-out episodes, to be searched and compared": names.VIEWER,
    "the complete configuration": names.CONFIG,
    "the trained model": f"{names.MODEL}/",
    "its card": f"{names.MODEL}/{names.CARD}",
    "the model that training started from": f"{names.WARM_START}/",
    "the tasks": names.QUERIES,
    "the demonstrations": names.DEMONSTRATIONS,
    "one row for each held-out episode and model": names.EVALUATED,
    "the held-out episodes": names.name_evaluation_file("trajectories", "*"),
    "the scores of their steps": names.name_evaluation_file("rewards", "*"),
    "the episodes of each round": names.name_round_files("trajectories"),
    "the scores of their steps, by round": names.name_round_files("rewards"),
    "what each step was worth to training, by round": names.name_round_files("advantages"),
    "the figures of every update": names.METRICS,
    "what each stage took": names.COSTS,
}
"""Files and folders of a run that its report links to: what they are, and a pattern of their names."""
PAIRS = 8
"""Tasks of each tier that the report shows before and after training."""
TRAINING_EPISODES = 4
"""Episodes of the last round that the report shows with their advantages."""


def read_run(folder: Path) -> ReportInputs:
    """The report's inputs, from the artifacts in the folder of a run."""
    config = load_config(folder / names.CONFIG)
    queries = {q.query_id: q for q in read_queries(folder / names.QUERIES)}
    metrics = read_records(folder / names.METRICS, Metric)
    evaluations = read_records(folder / names.EVALUATED, Evaluation)
    summaries, farming = _read_rounds(folder, queries, config)
    return ReportInputs(
        title=f"StepTool on {config.data.source}",
        config=config.model_dump(mode="json"),
        evaluations=evaluations,
        queries=list(queries.values()),
        metrics=[metric for metric in metrics if metric.update >= 0],
        rollouts=summaries,
        farming=farming,
        audits={index: _audit(folder, config, index) for index in range(config.ppo.rounds)},
        costs=read_records(folder / names.COSTS, Cost),
        examples=[
            *_select_pairs(folder, queries, evaluations),
            *_read_training_episodes(folder, queries, config.ppo.rounds - 1),
        ],
        counts={stage: select_counts(metrics, stage) for stage in ("ingest", "prepare")},
        notes=list(_write_notes(folder, metrics, summaries)),
        files=find_linked_files(folder),
    )


def find_linked_files(folder: Path) -> dict[str, list[str]]:
    """The files and folders of a run by what they are, as in FILES, without those that the folder does not hold."""
    links = {}
    for title, pattern in FILES.items():
        ending = "/" if pattern.endswith("/") else ""
        if paths := sorted(path.relative_to(folder).as_posix() + ending for path in folder.glob(pattern)):
            links[title] = paths
    return links


def _read_rounds(
    folder: Path, queries: Mapping[str, Query], config: Config
) -> tuple[list[RoundSummary], dict[int, list[FarmingPoint]]]:
    """Summary and farming points of each round, with the verdicts as the evaluation finds them."""
    summaries, farming, scale = [], {}, NO_REWARDS_SEEN
    for round_index in range(config.ppo.rounds):
        trajectories = read_records(folder / names.name_round_file("trajectories", round_index), Trajectory)
        rows = read_records(folder / names.name_round_file("rewards", round_index), StepReward)
        scale, composed_rewards = compose_round(trajectories, rows, config.rewards, config.ppo.reward, scale)
        trajectories = [replace(t, solved=find_verdict(queries[t.query_id], t)[0]) for t in trajectories]
        summaries.append(summarise_round(trajectories, rows, composed_rewards))
        farming[round_index] = collect_farming_points(trajectories, composed_rewards)
    return summaries, farming


def _audit(folder: Path, config: Config, round_index: int) -> Audit:
    episodes, rewards = (folder / names.name_round_file(kind, round_index) for kind in ("trajectories", "rewards"))
    return audit_files(folder / names.QUERIES, episodes, rewards, config)


def _select_pairs(
    folder: Path, queries: Mapping[str, Query], evaluations: Sequence[Evaluation]
) -> Iterator[EpisodePair]:
    """Held-out tasks before and after training: in each tier the solved, the lost and the unchanged alternate."""
    passed = {(r.model, r.query_id): r.passed for r in evaluations if r.decoding == GREEDY}
    before, after = (_read_evaluated_episodes(folder, model, passed) for model in ("warm_start", "steptool"))
    groups: dict[tuple[str, float, float], list[str]] = defaultdict(list)
    for query_id in before.keys() & after.keys():
        verdicts = (passed[model, query_id] for model in ("warm_start", "steptool"))
        first, second = (-1.0 if verdict is None else verdict for verdict in verdicts)
        groups[queries[query_id].tier, first, second].append(query_id)
    for tier in sorted({tier for tier, *_ in groups}):
        piles = [sorted(pile) for key, pile in sorted(groups.items()) if key[0] == tier]
        longest = max(map(len, piles))
        turns = [pile[i] for i in range(longest) for pile in piles if i < len(pile)]
        yield from (EpisodePair(queries[q], before[q], after[q]) for q in turns[:PAIRS])


def _read_evaluated_episodes(
    folder: Path, model: str, passed: Mapping[tuple[str, str], float | None]
) -> dict[str, ScoredEpisode]:
    rows = _group_by_trajectory(
        read_records(folder / names.name_evaluation_file("rewards", f"{model}_greedy"), StepReward)
    )
    return {
        t.query_id: ScoredEpisode(t, rows[t.trajectory_id], passed=passed.get((model, t.query_id)))
        for t in read_records(folder / names.name_evaluation_file("trajectories", f"{model}_greedy"), Trajectory)
    }


def _read_training_episodes(folder: Path, queries: Mapping[str, Query], round_index: int) -> Iterator[EpisodePair]:
    """Episodes of a round with the advantages that the policy learned from, solved and unsolved ones."""
    rewards = _group_by_trajectory(read_records(folder / names.name_round_file("rewards", round_index), StepReward))
    advantages = _group_by_trajectory(
        read_records(folder / names.name_round_file("advantages", round_index), Advantage)
    )
    episodes = [
        ScoredEpisode(t, rewards[t.trajectory_id], advantages[t.trajectory_id])
        for t in read_records(folder / names.name_round_file("trajectories", round_index), Trajectory)
        if advantages[t.trajectory_id]
    ]
    ranking = sorted(episodes, key=lambda e: e.verdict or 0.0)
    half = TRAINING_EPISODES // 2
    selection = ranking if len(ranking) <= TRAINING_EPISODES else [*ranking[:half], *ranking[-half:]]
    yield from (EpisodePair(queries[e.trajectory.query_id], None, e) for e in selection)


def _write_notes(folder: Path, metrics: Sequence[Metric], summaries: Sequence[RoundSummary]) -> Iterator[str]:
    yield from (entry["note"] for entry in names.read(folder / names.MODEL) if entry["round"] >= 0 and entry["note"])
    yield from name_lost_groups(metrics)
    counts = select_counts(metrics, "prepare")
    if left_out := counts.get("left out", 0):
        yield f"{left_out} queries were left out: their prompts do not fit the model's context."
    for name, number in counts.items():
        if name.startswith("demonstrations left out: "):
            yield f"{number} demonstrations were left out: {name.partition(': ')[2]}."
    missing = sum(s["missing"] for s in summaries)
    if missing:
        yield f"{missing} episodes were not learned from: a score that their reward needs is missing."


def _group_by_trajectory(records: Iterable[S]) -> dict[str, list[S]]:
    groups: dict[str, list[S]] = defaultdict(list)
    for record in records:
        groups[record.trajectory_id].append(record)
    return groups
