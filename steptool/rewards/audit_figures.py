"""The figures of an audit: agreement of annotators, disputed steps, separation, farming, tools and drift."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steptool.config import RewardConfig
from steptool.records import Query, Step, StepReward, Trajectory
from steptool.rewards.compose import FIXED, ComponentWeights, compose, compute_round_weights, label_annotator
from steptool.rewards.statistics import (
    Estimate,
    Farming,
    Redundancy,
    auroc,
    chance_auroc,
    collect_farming_points,
    measure_farming,
    measure_redundancy,
)

COMPONENTS = ("succ_calling", "contribution", "is_solved")
YES = 0.5
"""Score from which a component counts as a yes. An IsSolved of exactly this is unsure and is not compared."""
NO_CALL = "(no call)"
SHOWN = 400
"""Characters of an observation that a dispute quotes."""

Scores = Mapping[str, Sequence[StepReward]]
"""The rows of one annotator by trajectory, in the order of the steps."""


@dataclass(frozen=True)
class Dispute:
    """A step on which two annotators differ."""

    trajectory_id: str
    step: int
    component: str
    instruction: str
    tool: str
    arguments: str
    """JSON."""
    observation: str
    """The beginning of what the tool returned."""
    answer: str
    scores: Mapping[str, float]
    """The score by each annotator."""
    rationales: Mapping[str, str]


_Case = tuple[Trajectory, int, str, str, float]
"""Trajectory, step, component, the other annotator, and by how much the first gives more."""


def group_scores(
    trajectories: Sequence[Trajectory], rows: Iterable[StepReward]
) -> dict[str, dict[str, list[StepReward]]]:
    """Rows by annotator and trajectory, without trajectories of which an annotator did not score every step."""
    lengths = {t.trajectory_id: len(t.steps) for t in trajectories}
    groups: dict[str, dict[str, list[StepReward]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.step < lengths.get(row.trajectory_id, 0):
            groups[label_annotator(row)][row.trajectory_id].append(row)
    return {
        name: {t: sorted(part, key=lambda r: r.step) for t, part in scores.items() if len(part) == lengths[t]}
        for name, scores in groups.items()
    }


def pair_scores(
    trajectories: Sequence[Trajectory], one: Scores, other: Scores, component: str
) -> Iterator[tuple[Trajectory, int, float, float]]:
    """The steps that both annotators scored, with both scores. Unsure verdicts are left out."""
    for t in trajectories:
        pairs = zip(one.get(t.trajectory_id, ()), other.get(t.trajectory_id, ()), strict=False)
        for number, (a, b) in enumerate(pairs):
            pair = getattr(a, component), getattr(b, component)
            if None not in pair and not (component == "is_solved" and YES in pair):
                yield t, number, *pair


def find_disputes(
    queries: Mapping[str, Query], trajectories: Sequence[Trajectory], by_annotator: Mapping[str, Scores], count: int
) -> list[Dispute]:
    """The `count` widest differences between the first annotator and another; kinds and episodes take turns."""
    main, *others = by_annotator
    cases = [
        (t, number, component, other, a - b)
        for other in others
        for component in COMPONENTS
        for t, number, a, b in pair_scores(trajectories, by_annotator[main], by_annotator[other], component)
        if a != b
    ]
    turns: dict[object, int] = defaultdict(int)
    ranked_cases: list[tuple[int, float, int, _Case]] = []
    for case in sorted(cases, key=lambda case: -abs(case[-1])):
        t, number, component, _, gap = case
        kinds = (get_tool_name(t.steps[number]), component, gap > 0), t.trajectory_id
        ranked_cases.append((sum(turns[kind] for kind in kinds), -abs(gap), len(ranked_cases), case))
        for kind in kinds:
            turns[kind] += 1
    disputes = [case for *_, case in sorted(ranked_cases, key=lambda r: r[:3])[:count]]
    return [
        _make_dispute(queries, t, number, component, {name: by_annotator[name] for name in (main, other)})
        for t, number, component, other, _ in disputes
    ]


def _make_dispute(
    queries: Mapping[str, Query], t: Trajectory, number: int, component: str, by_annotator: Mapping[str, Scores]
) -> Dispute:
    step, query = t.steps[number], queries.get(t.query_id)
    rows = {name: scores[t.trajectory_id][number] for name, scores in by_annotator.items()}
    return Dispute(
        trajectory_id=t.trajectory_id,
        step=number,
        component=component,
        instruction=query.instruction if query else "",
        tool=get_tool_name(step),
        arguments=json.dumps(dict(step.call.arguments), ensure_ascii=False) if step.call else "",
        observation=step.observation[:SHOWN],
        answer=t.final_answer or "",
        scores={name: float(getattr(row, component)) for name, row in rows.items()},
        rationales={name: row.rationale for name, row in rows.items()},
    )


def get_tool_name(step: Step) -> str:
    """Name of the called tool; a mark where no call could be read."""
    return step.call.name if step.call else NO_CALL


@dataclass(frozen=True)
class Agreement:
    """Two annotators on one component of the same steps."""

    one: str
    other: str
    component: str
    table: tuple[tuple[int, int], tuple[int, int]]
    """Steps by verdict: rows by the first annotator, columns by the other, no before yes."""
    kappa: Estimate | None

    @property
    def steps(self) -> int:
        """Steps that both scored."""
        return sum(map(sum, self.table))

    @property
    def same(self) -> float:
        """Share of these steps on which both give the same verdict."""
        return (self.table[0][0] + self.table[1][1]) / max(1, self.steps)


@dataclass(frozen=True)
class Separation:
    """How well a figure of an episode tells the solved from the others."""

    annotator: str
    figure: str
    """contribution: mean over the calls; steps: sum of the composed rewards before the last step; is_solved; and with
    calibrated weights succ_calling, mean over the calls, and calibrated_steps, the sum with this round's weights."""
    auroc: Estimate | None
    solved: int
    """Solved episodes among those of the AUROC."""

    def is_reversed(self) -> bool:
        """Whether unsolved episodes have the higher figure, more clearly than chance explains (5%, two-sided)."""
        if self.auroc is None:
            return False
        return self.auroc.value < chance_auroc(self.solved, self.auroc.n - self.solved)[0]


@dataclass(frozen=True)
class OptionEffect:
    """The step rewards of an audit's episodes, composed with one option set the other way."""

    option: str
    """What differs from the configuration; empty: nothing."""
    separation: Estimate | None
    """AUROC of their sum before the last step."""
    length: Estimate | None
    """Correlation of that sum with the number of steps."""
    redundant: float | None
    """Mean reward of a redundant call; None without such a call."""


def select_decided_episodes(
    trajectories: Sequence[Trajectory], scores: Scores
) -> tuple[bool, list[tuple[Trajectory, Sequence[StepReward], bool]]]:
    """The scored episodes with a clear verdict: their rows, and whether they are solved.

    The verdict is the environment's. Without any, it is the annotator's own IsSolved, and the first value is true.
    """
    scored_episodes = [(t, scores[t.trajectory_id]) for t in trajectories if scores.get(t.trajectory_id)]
    is_own_verdict = not any(t.solved is not None for t, _ in scored_episodes)
    verdicts = [(t, rows, rows[-1].is_solved if is_own_verdict else t.solved) for t, rows in scored_episodes]
    return is_own_verdict, [
        (t, rows, verdict > YES) for t, rows, verdict in verdicts if verdict is not None and verdict != YES
    ]


def measure_options(trajectories: Sequence[Trajectory], scores: Scores, config: RewardConfig) -> Iterator[OptionEffect]:
    """What each option of the composition does to the step rewards: first all as configured, then one changed each."""
    calibrated = ComponentWeights(**compute_round_weights(list(scores.values())))
    weights, alternative = (calibrated, FIXED) if config.weights == "calibrated" else (FIXED, calibrated)
    changes: list[dict[str, Any]] = [
        {"contribution": "score" if config.contribution == "progress" else "progress"},
        {"redundant_cost": 0.0 if config.redundant_cost else RewardConfig().redundant_cost},
    ]
    variants = [("", config, weights)]
    variants += [(_describe(change), config.model_copy(update=change), weights) for change in changes]
    variants.append((f"weights: {'fixed' if alternative is FIXED else 'calibrated'}", config, alternative))
    outcomes = {t.trajectory_id: verdict for t, _, verdict in select_decided_episodes(trajectories, scores)[1]}
    for option, settings, factors in variants:
        rewards = [compose(scores.get(t.trajectory_id, ()), settings, "step", t.steps, factors) for t in trajectories]
        sums = {
            t.trajectory_id: float(r[:-1].sum()) for t, r in zip(trajectories, rewards, strict=True) if r is not None
        }
        judged = [name for name in sums if name in outcomes]
        yield OptionEffect(
            option,
            auroc([sums[name] for name in judged], [outcomes[name] for name in judged]),
            measure_farming(collect_farming_points(trajectories, rewards))[0].correlation,
            measure_redundancy(trajectories, rewards).reward,
        )


def _describe(change: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}: {value}" for field, value in change.items())


@dataclass(frozen=True)
class ToolScores:
    """The scores of the calls of one tool. A mean over nothing is None."""

    tool: str
    calls: int
    succ_calling: float | None
    contribution: float | None
    idle: float | None
    """Share of the calls with a Contribution of 0."""
    spread: tuple[int, ...]
    """Number of calls by Contribution: 0, up to .25, up to .5, up to .75, up to 1."""


@dataclass(frozen=True)
class Drift:
    """A component now against an earlier run."""

    component: str
    change: Estimate | None
    """Mean now less mean then."""
    index: float | None
    """Population stability index: over 0.25 is a shift by custom."""


@dataclass(frozen=True)
class Audit:
    """Figures about the rewards of one annotator, and about others on the same steps."""

    annotator: str
    others: Sequence[str]
    episodes: int
    steps: int
    missing: Mapping[str, float]
    """Share of the steps whose score of a component is missing, among those that should have one."""
    reasons: Mapping[str, int]
    """Missing votes by reason, as the annotator gave them."""
    left_out: float
    """Share of the episodes without a composed reward."""
    idle: float | None
    """Share of the calls with a Contribution of 0; None without any Contribution."""
    solved_calls: int
    """Successful calls with a Contribution in solved episodes."""
    step_rewards: bool
    """Whether the steps before the last are rewarded at all."""
    judged: int
    """Episodes with a verdict by the environment. Without any, separation is against the annotator's own IsSolved."""
    agreements: Sequence[Agreement]
    separations: Sequence[Separation]
    farming: Sequence[Farming]
    redundancy: Redundancy
    tools: Sequence[ToolScores]
    disputes: Sequence[Dispute]
    drifts: Sequence[Drift]
    weights: ComponentWeights | None = None
    """Calibrated weights by these episodes alone; None where weights are fixed."""
    options: Sequence[OptionEffect] = ()
    """The step rewards as configured, and with each option of their composition set the other way."""

    def separation(self, figure: str) -> Estimate | None:
        """The AUROC of a figure of the annotator; None where it is not defined."""
        own = (s for s in self.separations if s.annotator == self.annotator and s.figure == figure)
        return next((s.auroc for s in own), None)

    def contribution_kappa(self) -> Estimate | None:
        """Agreement on Contribution with the first of the others; None without others, or if it is not defined."""
        kappas = (a.kappa for a in self.agreements if a.one == self.annotator and a.component == "contribution")
        return next(kappas, None)

    def contribution_separation(self) -> Separation:
        """Separation by the annotator's mean Contribution."""
        return next(s for s in self.separations if s.annotator == self.annotator and s.figure == "contribution")

    def contribution_auroc(self) -> Estimate | None:
        """The AUROC of the annotator's mean Contribution; None where it is not defined."""
        return self.contribution_separation().auroc
