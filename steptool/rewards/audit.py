"""Whether rewards can be trusted, before anything learns from them.

Step rewards of one or several annotators on the same trajectories become figures: what is missing, how far
annotators agree, whether the reward tells solved episodes from others, whether length alone is paid for, what each
tool earns, and how far the rewards have moved since an earlier run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from steptool.config import RewardConfig
from steptool.records import Query, StepReward, StepStatus, Trajectory
from steptool.rewards.agreement import (
    Estimate,
    auroc,
    chance_auroc,
    confusion,
    difference,
    kappa,
    stability_index,
)
from steptool.rewards.compose import compose
from steptool.rewards.disagreement import COMPONENTS, YES, Dispute, Opinion, both, find_disputes, opinions_on, tool_of
from steptool.rewards.farming import Farming, farming_points, idle_share, measure_farming

_EDGES = (0.0, 0.25, 0.5, 0.75)
"""Upper ends of the bins of Contribution, but for the last."""


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
        """Share of them on which both say the same."""
        return (self.table[0][0] + self.table[1][1]) / max(1, self.steps)


@dataclass(frozen=True)
class Separation:
    """How well a figure of an episode tells the solved from the others."""

    annotator: str
    figure: str
    """contribution: mean over the calls; steps: sum of the composed rewards before the last step; is_solved."""
    auroc: Estimate | None
    solved: int
    """Solved episodes among those of the AUROC."""

    def is_reversed(self) -> bool:
        """Whether unsolved episodes have the higher figure, more clearly than chance would have it (5%, two-sided)."""
        if self.auroc is None:
            return False
        return self.auroc.value < chance_auroc(self.solved, self.auroc.n - self.solved)[0]


@dataclass(frozen=True)
class ToolScores:
    """What the calls of one tool were given. A mean over nothing is None."""

    tool: str
    calls: int
    succ_calling: float | None
    contribution: float | None
    idle: float | None
    """Share of the calls with a Contribution of 0."""
    spread: tuple[int, ...]
    """How many calls had which Contribution: 0, to .25, to .5, to .75, to 1."""


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
    """Share of the steps that ought to have a component and have none."""
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
    """Episodes with a verdict by the environment; 0: separation is against the annotator's own IsSolved."""
    agreements: Sequence[Agreement]
    separations: Sequence[Separation]
    farming: Sequence[Farming]
    tools: Sequence[ToolScores]
    disputes: Sequence[Dispute]
    drifts: Sequence[Drift]

    def contribution_kappa(self) -> Estimate | None:
        """Agreement on Contribution with the first of the others; None if there is none or it is not defined."""
        found = (a.kappa for a in self.agreements if a.one == self.annotator and a.component == "contribution")
        return next(found, None)

    def contribution_separation(self) -> Separation:
        """Separation by the annotator's mean Contribution."""
        return next(s for s in self.separations if s.annotator == self.annotator and s.figure == "contribution")

    def contribution_auroc(self) -> Estimate | None:
        """The AUROC of the annotator's mean Contribution; None where it is not defined."""
        return self.contribution_separation().auroc


def audit(
    queries: Mapping[str, Query],
    trajectories: Sequence[Trajectory],
    rows: Iterable[StepReward],
    config: RewardConfig,
    earlier: Iterable[StepReward] = (),
    reward: Literal["step", "final"] = "step",
    disputes: int = 12,
) -> Audit:
    """Audit the rewards of trajectories, composed as `config` and `reward` say.

    `rows` may hold several annotators; the first one's are those to learn from. `earlier` are rows of another run, by
    whichever annotator. Raises ValueError where no row is about the trajectories.
    """
    opinions = opinions_on(trajectories, rows)
    if not opinions:
        raise ValueError(f"no row of the rewards is about one of the {len(trajectories)} trajectories given")
    (main, scores), *_ = opinions.items()
    needed = [compose(scores.get(t.trajectory_id, ()), config, reward) for t in trajectories]
    rewards = [compose(scores.get(t.trajectory_id, ()), config) for t in trajectories]
    return Audit(
        annotator=main,
        others=list(opinions)[1:],
        episodes=len(trajectories),
        steps=sum(len(t.steps) for t in trajectories),
        missing={c: _missing(trajectories, scores, c) for c in COMPONENTS},
        reasons=_missing_reasons(scores),
        left_out=sum(r is None for r in needed) / max(1, len(needed)),
        idle=idle_share(_call_contributions(trajectories, scores)),
        solved_calls=_count_solved_calls(trajectories, scores),
        step_rewards=reward == "step" and config.step_weight > 0,
        judged=sum(t.solved is not None for t in trajectories),
        agreements=[a for pair in combinations(opinions, 2) for a in _agreements(trajectories, opinions, *pair)],
        separations=[s for name in opinions for s in _separations(trajectories, name, opinions[name], config)],
        farming=measure_farming(farming_points(trajectories, rewards)),
        tools=_tools(trajectories, scores),
        disputes=find_disputes(queries, trajectories, opinions, disputes),
        drifts=list(_drifts(earlier, scores)),
    )


def _before_last(rows: Sequence[StepReward], config: RewardConfig) -> float | None:
    composed = compose(rows, config)
    return None if composed is None else float(composed[:-1].sum())


def _missing(trajectories: Sequence[Trajectory], scores: Opinion, component: str) -> float:
    """Finish has no Contribution, and only the last step has an IsSolved."""
    due = absent = 0
    for t in trajectories:
        rows, last = scores.get(t.trajectory_id), len(t.steps) - 1
        for number, step in enumerate(t.steps):
            if component == "is_solved" and number != last:
                continue
            if component == "contribution" and (step.status is StepStatus.FINISH or number == last):
                continue
            due += 1
            absent += rows is None or getattr(rows[number], component) is None
    return absent / max(1, due)


def _missing_reasons(scores: Opinion) -> Counter[str]:
    """The problems that a judge kept in the votes of the last step of each episode."""
    reasons: Counter[str] = Counter()
    for rows in scores.values():
        votes = json.loads(rows[-1].votes)
        problems = votes.get("missing") if isinstance(votes, dict) else None
        if isinstance(problems, list):
            reasons.update(map(str, problems))
    return reasons


def _call_contributions(trajectories: Sequence[Trajectory], scores: Opinion) -> Iterator[float | None]:
    for t in trajectories:
        for step, row in zip(t.steps, scores.get(t.trajectory_id, ()), strict=False):
            if step.status is not StepStatus.FINISH:
                yield row.contribution


def _count_solved_calls(trajectories: Sequence[Trajectory], scores: Opinion) -> int:
    """Successful calls that have a Contribution, in episodes that the environment or the annotator calls solved."""
    count = 0
    for t in trajectories:
        rows = scores.get(t.trajectory_id, ())
        verdict = t.solved if t.solved is not None or not rows else rows[-1].is_solved
        if verdict is not None and verdict > YES:
            calls = zip(t.steps, rows, strict=False)
            count += sum(s.status is StepStatus.OK and r.contribution is not None for s, r in calls)
    return count


def _agreements(
    trajectories: Sequence[Trajectory], opinions: Mapping[str, Opinion], one: str, other: str
) -> Iterator[Agreement]:
    for component in COMPONENTS:
        pairs = [(a, b) for *_, a, b in both(trajectories, opinions[one], opinions[other], component)]
        yes = np.array(pairs, dtype=np.float64).reshape(-1, 2) >= YES
        table = confusion(yes[:, 0], yes[:, 1])
        (a, b), (c, d) = table.tolist()
        yield Agreement(one, other, component, ((a, b), (c, d)), kappa(table))


def _separations(
    trajectories: Sequence[Trajectory], name: str, scores: Opinion, config: RewardConfig
) -> Iterator[Separation]:
    """Against the environment's verdict, and where it has none against the annotator's own IsSolved."""
    known = [t for t in trajectories if scores.get(t.trajectory_id)]
    own = not any(t.solved is not None for t in known)
    figures: dict[str, Callable[[Sequence[StepReward]], float | None]] = {
        "contribution": lambda rows: _mean(r.contribution for r in rows),
        "steps": lambda rows: _before_last(rows, config),
        "is_solved": lambda rows: rows[-1].is_solved,
    }
    for figure, of in figures.items():
        if own and figure == "is_solved":
            continue
        points = [
            (value, verdict > YES)
            for t in known
            for rows in [scores[t.trajectory_id]]
            for value, verdict in [(of(rows), rows[-1].is_solved if own else t.solved)]
            if value is not None and verdict not in (None, YES)
        ]
        solved = [is_solved for _, is_solved in points]
        yield Separation(name, figure, auroc([value for value, _ in points], solved), sum(solved))


def _tools(trajectories: Sequence[Trajectory], scores: Opinion) -> list[ToolScores]:
    """Tools by the number of their calls; Finish is none."""
    rows: dict[str, list[StepReward]] = defaultdict(list)
    for t in trajectories:
        for step, row in zip(t.steps, scores.get(t.trajectory_id, ()), strict=False):
            if step.status is not StepStatus.FINISH:
                rows[tool_of(step)].append(row)
    return [_given(tool, own) for tool, own in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))]


def _given(tool: str, rows: Sequence[StepReward]) -> ToolScores:
    known = [r.contribution for r in rows if r.contribution is not None]
    spread = np.bincount(np.digitize(known, _EDGES, right=True), minlength=len(_EDGES) + 1)
    return ToolScores(
        tool,
        len(rows),
        _mean(r.succ_calling for r in rows),
        _mean(known),
        idle_share(known),
        tuple(spread.tolist()),
    )


def _drifts(earlier: Iterable[StepReward], scores: Opinion) -> Iterator[Drift]:
    before = list(earlier)
    for component in COMPONENTS if before else ():
        then = [score for r in before if (score := getattr(r, component)) is not None]
        now = [score for rows in scores.values() for r in rows if (score := getattr(r, component)) is not None]
        yield Drift(component, difference(then, now), stability_index(then, now))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
