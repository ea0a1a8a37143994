"""Reads the folder of a run into the inputs of its report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from steptool.artifacts import layout as names
from steptool.artifacts import lineage
from steptool.artifacts.lineage import CARD
from steptool.artifacts.metrics import counts_of
from steptool.artifacts.queries import read_queries
from steptool.config import Config, load_config
from steptool.contracts.tables import read_records
from steptool.records import Advantage, Cost, Evaluation, Metric, Query, StepReward, Trajectory
from steptool.report.run_inputs import (
    EpisodePair,
    ReportInputs,
    RoundSummary,
    ScoredEpisode,
    summarise_round,
)
from steptool.rewards.audit_figures import Audit
from steptool.rewards.audit_files import audit_files
from steptool.rewards.compose import step_rewards
from steptool.rewards.farming import FarmingPoint, farming_points
from steptool.rewards.running_scale import NO_REWARDS_SEEN

S = TypeVar("S", StepReward, Advantage)

FILES = {
    names.CONFIG: "the complete configuration",
    names.QUERIES: "the tasks",
    names.EVALUATED: "one row for each held-out episode and model",
    names.METRICS: "the figures of every update",
    names.COSTS: "what each stage took",
    f"{names.MODEL}/{CARD}": "card of the trained model",
    f"{names.WARM_START}/{CARD}": "card of the model that training started from",
}
"""Files of a run that its report links to."""
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
    summaries, farming = _rounds(folder, config)
    return ReportInputs(
        title=f"StepTool on {config.data.source}",
        config=config.model_dump(mode="json"),
        evaluations=evaluations,
        metrics=[metric for metric in metrics if metric.update >= 0],
        rollouts=summaries,
        farming=farming,
        audits={index: _audit(folder, config, index) for index in range(config.ppo.rounds)},
        costs=read_records(folder / names.COSTS, Cost),
        examples=[*_pairs(folder, queries, evaluations), *_training_episodes(folder, queries, config.ppo.rounds - 1)],
        counts={stage: counts_of(metrics, stage) for stage in ("ingest", "prepare")},
        notes=list(_notes(folder, metrics, summaries)),
        files={name: what for name, what in FILES.items() if (folder / name).exists()},
    )


def _rounds(folder: Path, config: Config) -> tuple[list[RoundSummary], dict[int, list[FarmingPoint]]]:
    summaries, farming, scale = [], {}, NO_REWARDS_SEEN
    for round_index in range(config.ppo.rounds):
        trajectories = read_records(folder / names.of_round("trajectories", round_index), Trajectory)
        rows = read_records(folder / names.of_round("rewards", round_index), StepReward)
        composed = step_rewards(trajectories, rows, config.rewards, config.ppo.reward)
        if config.rewards.normalisation == "running":
            scale = scale.after(composed)
            composed = scale.apply(composed)
        summaries.append(summarise_round(trajectories, rows, composed))
        farming[round_index] = farming_points(trajectories, composed)
    return summaries, farming


def _audit(folder: Path, config: Config, round_index: int) -> Audit:
    episodes, rewards = (folder / names.of_round(kind, round_index) for kind in ("trajectories", "rewards"))
    return audit_files(folder / names.QUERIES, episodes, rewards, config)


def _pairs(folder: Path, queries: Mapping[str, Query], evaluations: Sequence[Evaluation]) -> Iterator[EpisodePair]:
    """Held-out tasks before and after training: in each tier the solved, the lost and the unchanged alternate."""
    passed = {(r.model, r.query_id): r.passed for r in evaluations if r.decoding == "greedy"}
    before, after = (_evaluated_episodes(folder, model, passed) for model in ("warm_start", "steptool"))
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


def _evaluated_episodes(
    folder: Path, model: str, passed: Mapping[tuple[str, str], float | None]
) -> dict[str, ScoredEpisode]:
    rows = _group_by_trajectory(read_records(folder / names.of_evaluation("rewards", f"{model}_greedy"), StepReward))
    return {
        t.query_id: ScoredEpisode(t, rows[t.trajectory_id], passed=passed.get((model, t.query_id)))
        for t in read_records(folder / names.of_evaluation("trajectories", f"{model}_greedy"), Trajectory)
    }


def _training_episodes(folder: Path, queries: Mapping[str, Query], round_index: int) -> Iterator[EpisodePair]:
    """Episodes of a round with the advantages that the policy learned from, solved and unsolved ones."""
    rewards = _group_by_trajectory(read_records(folder / names.of_round("rewards", round_index), StepReward))
    advantages = _group_by_trajectory(read_records(folder / names.of_round("advantages", round_index), Advantage))
    episodes = [
        ScoredEpisode(t, rewards[t.trajectory_id], advantages[t.trajectory_id])
        for t in read_records(folder / names.of_round("trajectories", round_index), Trajectory)
        if advantages[t.trajectory_id]
    ]
    ranked = sorted(episodes, key=lambda e: e.verdict or 0.0)
    half = TRAINING_EPISODES // 2
    chosen = ranked if len(ranked) <= TRAINING_EPISODES else [*ranked[:half], *ranked[-half:]]
    yield from (EpisodePair(queries[e.trajectory.query_id], None, e) for e in chosen)


def _notes(folder: Path, metrics: Sequence[Metric], summaries: Sequence[RoundSummary]) -> Iterator[str]:
    yield from (entry["note"] for entry in lineage.read(folder / names.MODEL) if entry["round"] >= 0 and entry["note"])
    prepared = counts_of(metrics, "prepare")
    if left_out := prepared.get("left out", 0):
        yield f"{left_out} queries were left out: their prompts do not fit the model's context."
    for name, number in prepared.items():
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
