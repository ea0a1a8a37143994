from collections.abc import Callable

import pytest

from steptool.config import RewardConfig
from steptool.records import Step, StepReward, Trajectory
from steptool.rewards.audit import audit
from steptool.rewards.compose import (
    NO_REWARDS_SEEN,
    ComponentWeights,
    RunningScale,
    compose,
    compose_round,
    compute_round_weights,
    moving_average,
)


def episode(name: str, solved: float | None, *scores: tuple[float, float | None]) -> list[StepReward]:
    """Rows of an episode with (SuccCalling, Contribution) of its calls, and a Finish."""
    rows = [*scores, (1.0, None)]
    last = len(rows) - 1
    return [
        StepReward(name, step, "rules", "1", "", succ, contribution, solved if step == last else None)
        for step, (succ, contribution) in enumerate(rows)
    ]


ROUND = [
    episode("a", 1.0, (1, 1.0), (1, 1.0)),
    episode("b", 1.0, (1, 0.5), (0, 0.5)),
    episode("c", 0.0, (1, 0.5), (1, 0.0)),
    episode("d", 0.0, (1, 0.0)),
    episode("e", 0.5, (0, 1.0)),  # unsure: left out
    episode("f", None, (0, 1.0)),
]
"""Mean Contribution: solved 1, .5; unsolved .25, 0: AUROC 1. Mean SuccCalling: solved 1, .5; unsolved 1, 1: .25."""


def test_a_component_counts_as_far_as_it_goes_with_the_outcome() -> None:
    assert compute_round_weights(ROUND) == {"succ_calling": 0.0, "contribution": 1.0}  # 2 * .25 - 1 is below 0
    lifted = [*ROUND[:2], episode("c", 0.0, (1, 1.0)), episode("d", 0.0, (0, 0.0))]
    # Contribution: 1 and .5 against 1 and 0: (.5 + 1 + 0 + 1) / 4 = .625; SuccCalling: 1, .5 against 1, 0: the same
    assert compute_round_weights(lifted) == {"succ_calling": 0.25, "contribution": 0.25}
    assert compute_round_weights(ROUND[:2]) == {}  # nothing unsolved to compare with


def test_weights_move_over_the_last_rounds() -> None:
    scale = RunningScale().calibrate(ROUND, rounds=4)
    assert scale.component_weights == ComponentWeights(0.0, 1.0)
    assert scale.calibrate(ROUND[:2], rounds=4) == scale  # a round that says nothing
    assert moving_average({"contribution": 1.0}, {"contribution": 0.2, "succ_calling": 0.4}, 4) == {
        "contribution": pytest.approx(0.8), "succ_calling": 0.4
    }  # fmt: skip
    assert RunningScale().component_weights == ComponentWeights(1.0, 1.0)


def test_the_state_goes_through_its_file(tmp_path) -> None:
    scale = RunningScale().after([]).calibrate(ROUND, rounds=4)
    assert RunningScale.load(scale.save(tmp_path / "scale.json")) == scale


def test_weights_enter_the_composed_reward() -> None:
    config = RewardConfig(alpha=0.5, step_weight=0.2, succ_calling="bonus", redundant_cost=0.0)
    # .2 * (.1 * .5 * 1 + .5 * 1)
    rewards = compose(ROUND[0], config, weights=ComponentWeights(0.1, 0.5))
    assert rewards is not None and rewards.tolist() == pytest.approx([0.11, 0.11, 1.0])


def test_a_round_is_paid_by_the_weights_that_it_has_itself_determined(
    make_step: Callable[..., Step], make_trajectory: Callable[..., Trajectory]
) -> None:
    """Its weights are 0 and 1, so the two calls of the first episode earn .2 * 1 each; the report pays the same."""
    trajectory = make_trajectory([make_step("look", "x", a=1), make_step("look", "y", a=2)], "done", trajectory_id="a")
    config = RewardConfig(alpha=0.5, step_weight=0.2, succ_calling="bonus", redundant_cost=0.0, weights="calibrated")
    score_rows = [row for rows in ROUND for row in rows]
    scale, (rewards,) = compose_round([trajectory], score_rows, config, "step", NO_REWARDS_SEEN)
    assert rewards is not None and rewards.tolist() == pytest.approx([0.2, 0.2, 1.0])
    assert scale.component_weights == ComponentWeights(0.0, 1.0)
    fixed = config.model_copy(update={"weights": "fixed"})
    scale, (rewards,) = compose_round([trajectory], score_rows, fixed, "step", NO_REWARDS_SEEN)
    assert rewards is not None and rewards.tolist() == pytest.approx([0.3, 0.3, 1.0])
    assert scale == NO_REWARDS_SEEN


def test_the_audit_shows_what_calibration_does(
    make_step: Callable[..., object], make_trajectory: Callable[..., Trajectory]
) -> None:
    """With alpha 2 the calls of unsolved episodes are paid more than those of b; without SuccCalling they are not."""
    call = make_step("look", "x")
    trajectories = [
        make_trajectory([call] * (len(rows) - 1), "x", trajectory_id=rows[0].trajectory_id, solved=rows[-1].is_solved)
        for rows in ROUND[:4]
    ]
    config = RewardConfig(alpha=2.0, step_weight=1.0, succ_calling="penalty", weights="calibrated")
    report = audit({}, trajectories, [row for rows in ROUND for row in rows], config)
    assert report.weights == ComponentWeights(0.0, 1.0)
    # sums of 2 * (succ - 1) + contribution: a 2, b -1, c .5, d 0: 2 of 4 pairs; Contribution alone: 2, 1, .5, 0
    assert (report.separation("steps").value, report.separation("calibrated_steps").value) == (0.5, 1.0)
    assert report.separation("succ_calling").value == 0.25
    fixed = audit({}, trajectories, [row for rows in ROUND for row in rows], RewardConfig())
    assert (fixed.weights, fixed.separation("calibrated_steps")) == (None, None)
