"""How much each component of a step's score counts, by how well it tells solved episodes from the others.

A component that does not go with the outcome teaches habits that solve nothing. AUROC_c of a round is the
chance that a solved episode has a higher mean of component c, over the steps before the last, than one that was not
solved, by the annotator's own IsSolved. The weight of component c is Somers' D, no less than 0,

    k_c = max(0, 2 * AUROC_c - 1),

1 where it tells all of them and 0 where it says nothing or the opposite. Over rounds it is a moving average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steptool.records import StepReward
from steptool.rewards.agreement import Estimate, auroc

COMPONENTS = ("succ_calling", "contribution")
"""Components that steps before the last are paid for."""


@dataclass(frozen=True)
class ComponentWeights:
    """Factors of the components in a composed reward. 1 leaves a component as the configuration weighs it."""

    succ_calling: float = 1.0
    contribution: float = 1.0

    def __str__(self) -> str:
        return f"{self.succ_calling:.2f} for SuccCalling and {self.contribution:.2f} for Contribution"


FIXED = ComponentWeights()


def component_mean(rows: Sequence[StepReward], component: str) -> float | None:
    """The mean of a component over the steps of an episode before the last; None without any score."""
    scores = [score for row in rows[:-1] if (score := getattr(row, component)) is not None]
    return sum(scores) / len(scores) if scores else None


def component_auroc(episodes: Iterable[Sequence[StepReward]], component: str) -> Estimate | None:
    """How well a component tells solved episodes, each given by its rows in order; None unless there are both kinds.

    Episodes that the annotator is unsure of, or did not judge, are left out.
    """
    points = [
        (mean, rows[-1].is_solved == 1.0)
        for rows in episodes
        if rows and rows[-1].is_solved in (0.0, 1.0) and (mean := component_mean(rows, component)) is not None
    ]
    return auroc([mean for mean, _ in points], [solved for _, solved in points])


def round_weights(episodes: Sequence[Sequence[StepReward]]) -> dict[str, float]:
    """The weight of each component by the episodes of a round; without those that the round does not determine."""
    estimates = {component: component_auroc(episodes, component) for component in COMPONENTS}
    return {name: max(0.0, 2.0 * estimate.value - 1.0) for name, estimate in estimates.items() if estimate}


def moving_average(former: Mapping[str, float], latest: Mapping[str, float], rounds: int) -> dict[str, float]:
    """The weights after a round: former + (latest - former) / rounds, which looks back over about so many rounds.

    A component's first round sets its weight; a round that does not determine it leaves it.
    """
    moved = {
        name: former.get(name, value) + (value - former.get(name, value)) / rounds for name, value in latest.items()
    }
    return {**former, **moved}
