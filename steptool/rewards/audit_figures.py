"""The figures of an audit: agreement of annotators, separation, farming, tools, disputed steps and drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steptool.rewards.agreement import Estimate, chance_auroc
from steptool.rewards.disagreement import Dispute
from steptool.rewards.farming import Farming, Redundancy


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

    def contribution_kappa(self) -> Estimate | None:
        """Agreement on Contribution with the first of the others; None if there is none or it is not defined."""
        kappas = (a.kappa for a in self.agreements if a.one == self.annotator and a.component == "contribution")
        return next(kappas, None)

    def contribution_separation(self) -> Separation:
        """Separation by the annotator's mean Contribution."""
        return next(s for s in self.separations if s.annotator == self.annotator and s.figure == "contribution")

    def contribution_auroc(self) -> Estimate | None:
        """The AUROC of the annotator's mean Contribution; None where it is not defined."""
        return self.contribution_separation().auroc
