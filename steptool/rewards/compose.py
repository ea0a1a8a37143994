"""From the components of a score to one reward per step, and the running scale of rewards.

Each round takes the running scale of the round before and hands on its own, as a file, so that a round that is run
again finds the same.

Components can be weighted by how well they tell solved episodes from the others: a component that does not go with
the outcome teaches habits that solve nothing. AUROC_c of a round is the chance that a solved episode has a higher
mean of component c, over the steps before the last, than one that was not solved, by the annotator's own IsSolved.
The weight of component c is Somers' D, no less than 0,

    k_c = max(0, 2 * AUROC_c - 1),

1 where it tells all of them and 0 where it says nothing or the opposite. Over rounds it is a moving average.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steptool.artifacts.metrics import average_known
from steptool.config import RewardConfig
from steptool.records import Step, StepReward, Trajectory
from steptool.records.tables import write_text
from steptool.rewards.statistics import Estimate, Rewards, auroc, find_redundant_steps

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
    return average_known(getattr(row, component) for row in rows[:-1])


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


def compute_round_weights(episodes: Sequence[Sequence[StepReward]]) -> dict[str, float]:
    """The weight of each component by the episodes of a round; without those that the round does not determine."""
    estimates = {component: component_auroc(episodes, component) for component in COMPONENTS}
    return {name: max(0.0, 2.0 * estimate.value - 1.0) for name, estimate in estimates.items() if estimate}


def moving_average(former: Mapping[str, float], latest: Mapping[str, float], rounds: int) -> dict[str, float]:
    """The weights after a round: former + (latest - former) / rounds, which looks back over about so many rounds.

    A component's first round sets its weight; a round that does not determine it leaves it.
    """
    averages = {
        name: former.get(name, value) + (value - former.get(name, value)) / rounds for name, value in latest.items()
    }
    return {**former, **averages}


_LEAST = 1e-8


@dataclass(frozen=True)
class RunningScale:
    """Count, mean and sum of squared deviations of the rewards seen so far, and calibrated weights of components."""

    count: float = 0.0
    mean: float = 0.0
    deviations: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    """By component (`component_weights`); empty before a round has determined them."""

    def after(self, rewards: Iterable[Rewards | None]) -> RunningScale:
        """The state with a round's rewards added (Chan, Golub and LeVeque 1979)."""
        present = [r for r in rewards if r is not None]
        values = np.concatenate(present) if present else np.zeros(0)
        if not values.size:
            return self
        count, gap = self.count + values.size, float(values.mean()) - self.mean
        spread = float(((values - values.mean()) ** 2).sum())
        return replace(
            self,
            count=count,
            mean=self.mean + gap * values.size / count,
            deviations=self.deviations + spread + gap**2 * self.count * values.size / count,
        )

    def calibrate(self, episodes: Sequence[Sequence[StepReward]], rounds: int) -> RunningScale:
        """The state with the weights after a round, whose episodes are given by their rows in order."""
        return replace(self, weights=moving_average(self.weights, compute_round_weights(episodes), rounds))

    @property
    def component_weights(self) -> ComponentWeights:
        """The calibrated weights; 1 for a component that no round has determined."""
        return ComponentWeights(**self.weights)

    @property
    def deviation(self) -> float:
        """Standard deviation of the rewards; 1 while they do not vary."""
        deviation = float(np.sqrt(self.deviations / self.count)) if self.count else 0.0
        return deviation if deviation > _LEAST else 1.0

    def apply(self, rewards: Sequence[Rewards | None]) -> list[Rewards | None]:
        """Rewards divided by the deviation. The mean stays: without it every further step would pay or cost."""
        return [None if r is None else r / self.deviation for r in rewards]

    def save(self, path: Path) -> Path:
        """Write the state into a JSON file, whole or not at all."""
        return write_text(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> RunningScale:
        """Read the state that `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


NO_REWARDS_SEEN = RunningScale()
"""The scale before the first round."""


def compose(
    score_rows: Sequence[StepReward],
    config: RewardConfig,
    reward: Literal["step", "final"] = "step",
    steps: Sequence[Step] = (),
    weights: ComponentWeights = FIXED,
) -> Rewards | None:
    """Rewards [T] of one trajectory from its rows of StepReward, one per step, by one annotator.

    r_t = step_weight * (k_s * alpha * succ_t + k_c * gain_t - redundant_cost * redundant_t)   for t < T
    r_T = IsSolved

    succ_t is SuccCalling ("bonus") or SuccCalling - 1 ("penalty"). gain_t is Contribution ("score") or its progress
    phi_t - phi_{t-1} ("progress") with the potential phi_t = min(1, sum of Contribution up to t / progress_steps). The
    progress of a trajectory sums to at most 1, however many steps it has (potential-based shaping, Ng, Harada and
    Russell 1999). Where the `steps` of the trajectory hold states and one leads back to an earlier state, the sum loses
    what the changes since then have added. redundant_t is 1 for a call that brings nothing new
    (`statistics.find_redundant_steps` of `steps`, which are needed if redundant_cost is not 0). k_s and k_c are the
    `weights` of the components.

    With normalisation "trajectory" r_t is divided by T - 1, so that the steps of a trajectory weigh the same in sum
    however many they are (a step without effect then dilutes penalties as well as contributions). "running" is applied
    to whole rounds (see RunningScale), not here. reward "final": r_t = 0 for t < T.

    None if a score that is needed is missing, or if there is no step at all. Raises ValueError for rows that are not
    those of one trajectory by one annotator, and for `steps` of another number.
    """
    rows = _check_rows(score_rows)
    if not rows or rows[-1].is_solved is None:
        return None
    rewards_T = np.zeros(len(rows))
    if reward == "step":
        succ = _read_column(rows, "succ_calling")
        contribution = _read_column(rows, "contribution")
        if succ is None or contribution is None:
            return None
        baseline = 1.0 if config.succ_calling == "penalty" else 0.0
        gain = contribution
        if config.contribution == "progress":
            states = [step.state for step in steps] if len(steps) == len(rows) else []
            gain = _measure_progress(contribution, config.progress_steps, states)
        cost = config.redundant_cost * _mark_redundant(steps, len(rows)) if config.redundant_cost else 0.0
        components = weights.succ_calling * config.alpha * (succ - baseline) + weights.contribution * gain
        rewards_T[:-1] = config.step_weight * (components - cost)
        if config.normalisation == "trajectory":
            rewards_T[:-1] /= max(1, len(rows) - 1)
    rewards_T[-1] = rows[-1].is_solved
    return rewards_T


def compose_steps(
    trajectories: Sequence[Trajectory],
    reward_rows: Iterable[StepReward],
    config: RewardConfig,
    reward: Literal["step", "final"] = "step",
    weights: ComponentWeights = FIXED,
) -> list[Rewards | None]:
    """For each trajectory the rewards [T] of its steps, None where a score that is needed is missing."""
    scores = group_rows(reward_rows)
    return [compose(scores.get(t.trajectory_id, ()), config, reward, t.steps, weights) for t in trajectories]


def compose_round(
    trajectories: Sequence[Trajectory],
    reward_rows: Sequence[StepReward],
    config: RewardConfig,
    reward: Literal["step", "final"],
    scale: RunningScale,
) -> tuple[RunningScale, list[Rewards | None]]:
    """The rewards of a round as training takes them, and the state after it.

    They are those of `compose_steps`, with calibrated weights and the running normalisation as configured. `scale` is
    the state after the rounds before.
    """
    if config.weights == "calibrated":
        scale = scale.calibrate(list(group_rows(reward_rows).values()), config.calibration_rounds)
    rewards = compose_steps(trajectories, reward_rows, config, reward, scale.component_weights)
    if config.normalisation == "running":
        scale = scale.after(rewards)
        rewards = scale.apply(rewards)
    return scale, rewards


def group_rows(reward_rows: Iterable[StepReward]) -> dict[str, list[StepReward]]:
    """The rows of each trajectory in the order of its steps, by its id."""
    scores: dict[str, list[StepReward]] = defaultdict(list)
    for row in reward_rows:
        scores[row.trajectory_id].append(row)
    return {name: sorted(rows, key=lambda row: row.step) for name, rows in scores.items()}


def _measure_progress(
    contribution_T: npt.NDArray[np.float64], steps_needed: int, states: Sequence[str | None]
) -> npt.NDArray[np.float64]:
    """The growth of the potential at each step before the last.

    `states` are digests of the environment's state before each step, the last one included; empty, or all None, where
    they are not known. What a change has brought belongs to the state that it has reached first; what other steps have
    brought stays.
    """
    by_state: dict[str | None, float] = {states[0] if states else None: 0.0}
    earlier, sums = 0.0, []
    for t, contribution in enumerate(contribution_T):
        before, after = (states[t], states[t + 1]) if states else (None, None)
        if after == before:
            earlier += contribution
        else:
            by_state.setdefault(after, by_state[before] + contribution)
        sums.append(earlier + by_state[after])
    return np.diff(np.minimum(np.array(sums) / steps_needed, 1.0), prepend=0.0)


def _mark_redundant(steps: Sequence[Step], count: int) -> npt.NDArray[np.float64]:
    """1 for each redundant step before the last, else 0."""
    if len(steps) != count:
        raise ValueError(f"rewards.redundant_cost needs the {count} steps of the trajectory, got {len(steps)}")
    return np.array(find_redundant_steps(steps)[:-1], dtype=np.float64)


def label_annotator(row: StepReward) -> str:
    """Who gave a score: name and version, and the prompt where there was one."""
    prompt = f" ({row.prompt_hash[:8]})" if row.prompt_hash else ""
    return f"{row.annotator} {row.annotator_version}{prompt}"


def describe_provenance(rows: Iterable[StepReward], config: RewardConfig) -> dict[str, Any]:
    """What went into composed rewards: annotators and settings (for a judge also its model and votes).

    {"annotators": labels, "prompts": whole hashes of their prompts, "settings": section `rewards` as plain data}.
    """
    sources = {label_annotator(row): row.prompt_hash for row in rows}
    prompts = {name: prompt for name, prompt in sources.items() if prompt}
    return {"annotators": sorted(sources), "prompts": prompts, "settings": config.model_dump(mode="json")}


def _read_column(rows: Sequence[StepReward], name: str) -> npt.NDArray[np.float64] | None:
    scores = [getattr(row, name) for row in rows[:-1]]
    return None if None in scores else np.array(scores, dtype=np.float64)


def _check_rows(score_rows: Sequence[StepReward]) -> list[StepReward]:
    rows = sorted(score_rows, key=lambda row: row.step)
    sources = {(row.trajectory_id, row.annotator, row.annotator_version, row.prompt_hash) for row in rows}
    if len(sources) > 1:
        raise ValueError(f"expected the scores of one trajectory by one annotator, got those of {sorted(sources)}")
    numbers = [row.step for row in rows]
    if numbers != list(range(len(rows))):
        raise ValueError(f"expected one score for each step 0..{len(rows) - 1} of {sources}, got steps {numbers}")
    return rows
