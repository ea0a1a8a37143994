import numpy as np
import pytest

from steptool.report.run_charts import draw_rollout_curves, judge_farming
from steptool.report.run_inputs import summarise_round
from steptool.rewards.statistics import FarmingPoint


def test_a_round_is_summarised_by_hand(trajectory, reward):
    a = trajectory("a", ["ok", "tool_error", "finish"], solved=1.0, round=3)
    b = trajectory("b", ["malformed", "ok"], solved=0.0, round=3)
    rows = [
        *(reward("a", 0, 1, 0.5), reward("a", 1, 0, 0.0), reward("a", 2, 1, None, 1.0)),
        *(reward("b", 0, 0, 0.0), reward("b", 1, 1, 0.2, 0.0)),
        reward("someone else", 0, 0, 0.0, 0.0),
    ]
    means = summarise_round([a, b], rows, [np.array([0.2, -0.1, 1.0]), np.array([-0.1, 0.0])])

    assert means["round"] == 3 and means["episodes"] == 2 and means["missing"] == 0
    assert means["pass_rate"] == 0.5
    assert means["mean_steps"] == 2.5
    assert means["invalid_call_rate"] == 2 / 4  # four calls besides the Finish: ok, tool_error, malformed, ok
    assert means["mean_reward"] == pytest.approx((1.1 - 0.1) / 2)
    assert means["succ_calling"] == pytest.approx(3 / 5)
    assert means["contribution"] == pytest.approx(0.7 / 4)
    assert means["is_solved"] == 0.5
    assert means["idle_call_rate"] == pytest.approx(2 / 3)  # the last step of each episode does not count


def test_the_interval_of_a_round_is_over_the_episodes_that_have_a_verdict(trajectory, reward):
    """Wilson's interval of 1 in 2 is 9% to 91%; over all four episodes it would be 15% to 85%."""
    judged = [trajectory(name, ["ok", "finish"], solved=solved) for name, solved in (("a", 1.0), ("b", 0.0))]
    others = [trajectory(name, ["ok", "finish"], solved=None) for name in "cd"]
    known = summarise_round(judged, [], [None, None])
    summary = summarise_round([*judged, *others], [], [None] * 4)
    assert (summary["episodes"], summary["verdicts"], summary["pass_rate"]) == (4, 2, 0.5)
    assert draw_rollout_curves([summary, summary])[0] == draw_rollout_curves([known, known])[0]
    wider = {**summary, "verdicts": 4}
    assert draw_rollout_curves([wider, wider])[0] != draw_rollout_curves([known, known])[0]


def test_what_is_missing_is_counted_and_never_taken_as_zero(trajectory, reward):
    a = trajectory("a", ["ok", "finish"], solved=None)
    b = trajectory("b", ["ok", "finish"], solved=1.0)
    rows = [
        reward("a", 0, None, None),
        reward("a", 1, 1, None, None),
        reward("b", 0, 1, 0.6),
        reward("b", 1, 1, None, 1),
    ]
    means = summarise_round([a, b], rows, [None, np.array([0.3, 1.0])])

    assert means["missing"] == 1
    assert (means["pass_rate"], means["is_solved"], means["succ_calling"]) == (1.0, 1.0, 1.0)
    assert means["contribution"] == pytest.approx(0.6)
    assert means["mean_reward"] == pytest.approx(1.3)


def test_an_empty_round_has_no_means():
    means = summarise_round([], [], [])
    assert means["episodes"] == 0 and means["pass_rate"] is None and means["mean_reward"] is None


def test_rewards_must_match_the_trajectories(trajectory):
    with pytest.raises(ValueError, match="shorter"):
        summarise_round([trajectory("a", ["finish"])], [], [])


def _round(steps: list[int], paid: float, solved: float) -> list[FarmingPoint]:
    return [FarmingPoint(n, 4 * n, paid * n, solved) for n in steps]


def test_longer_paid_and_not_better_is_farming():
    verdict = judge_farming({0: _round([3, 4, 5, 4], 0.1, 0.0), 4: _round([8, 9, 10, 9], 0.1, 0.0)})
    assert verdict.startswith("This looks like farming")
    assert "from 4.0 to 9.0 steps" in verdict and "correlation of length and step reward is 1." in verdict


@pytest.mark.parametrize(
    ("last", "opening"),
    [
        (_round([8, 9, 10, 9], 0.1, 1.0), "Worth a look"),
        (_round([3, 4, 5, 4], 0.1, 0.0), "No sign of farming"),
        (_round([8, 9, 10, 9], -0.1, 0.0), "No sign of farming"),
    ],
)
def test_other_rounds_are_not_called_farming(last, opening):
    assert judge_farming({0: _round([3, 4, 5, 4], 0.1, 0.0), 1: last}).startswith(opening)


def test_one_round_cannot_tell():
    assert "Two rounds are needed" in judge_farming({0: _round([3], 0.1, 0.0)})
    assert "Two rounds are needed" in judge_farming({})
