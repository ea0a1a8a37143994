import numpy as np
import pytest

from steptool.rewards.farming import FarmingPoint, farming_points, idle_share, measure_farming


def test_points_leave_out_the_last_step_and_missing_rewards(make_step, make_trajectory):
    call = make_step("f", "x")
    a = make_trajectory([call, call], "done", solved=1.0, spans=[(2, 5), (7, 9), (9, 10)])
    b = make_trajectory([], "done", solved=0.0)
    points = farming_points([a, b, b], [np.array([0.25, 0.5, 1.0]), np.array([0.0]), None])
    assert points == [FarmingPoint(3, 6, 0.75, 1.0), FarmingPoint(1, 0, 0.0, 0.0)]


def line(pairs):
    return [FarmingPoint(steps, 10 * steps, reward, 0.0) for steps, reward in pairs]


def test_correlation_and_slope_by_hand():
    steps, tokens = measure_farming(line([(n, 0.1 * n) for n in (2, 3, 5, 7)]))
    assert (steps.size, tokens.size) == ("steps", "tokens")
    assert steps.correlation.value == pytest.approx(1.0) and steps.slope == pytest.approx(0.1)
    assert tokens.correlation.value == pytest.approx(1.0) and tokens.slope == pytest.approx(0.01)
    assert measure_farming(line([(n, -0.1 * n) for n in (2, 3, 5, 7)]))[0].correlation.value == pytest.approx(-1.0)
    # steps 1 2 3 4, rewards 0 1 1 0: covariance 0
    assert measure_farming(line([(1, 0.0), (2, 1.0), (3, 1.0), (4, 0.0)]))[0].correlation.value == pytest.approx(0.0)
    assert measure_farming(line([(4, x) for x in (0.0, 1.0, 2.0, 3.0)]))[0].correlation is None
    assert measure_farming(line([(2, 1.0), (3, 2.0)]))[0].correlation is None


def test_idle_calls_are_those_without_a_contribution():
    assert idle_share([0.0, 0.5, None, 0.0, 1.0]) == 0.5
    assert idle_share([None]) is None
