import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.records import FINISH, Step, StepStatus, ToolCall
from steptool.rewards.statistics import (
    FarmingPoint,
    Redundancy,
    collect_farming_points,
    find_redundant_steps,
    idle_share,
    measure_farming,
    measure_redundancy,
)


def test_points_leave_out_the_last_step_and_missing_rewards(make_step, make_trajectory):
    call = make_step("f", "x")
    a = make_trajectory([call, call], "done", solved=1.0, spans=[(2, 5), (7, 9), (9, 10)])
    b = make_trajectory([], "done", solved=0.0)
    points = collect_farming_points([a, b, b], [np.array([0.25, 0.5, 1.0]), np.array([0.0]), None])
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


FINISHED = Step(ToolCall(FINISH, {"return_type": "give_answer", "final_answer": "7"}), StepStatus.FINISH, "")


def saw(observation: str, status: StepStatus = StepStatus.OK, name: str = "get", **arguments: object) -> Step:
    return Step(ToolCall(name, arguments), status, observation)


@pytest.mark.parametrize(
    ("steps", "redundant"),
    [
        ([saw("1", a=1, b=2), saw("1", b=2, a=1)], 1),  # the order of the arguments says nothing
        ([saw("1", a=1), saw("1", a=2), saw("1", name="put", a=1)], 0),
        ([saw("1", a=1), saw("done", name="put"), saw("2", a=1)], 0),  # looked again after a change
        ([saw("1", a=1), saw("2", a=1), saw("1", a=1)], 0),  # back to what it was: a change as well
        ([saw("1", a=1), saw("2", a=1), saw("2", a=1)], 1),
        ([saw("no", StepStatus.TOOL_ERROR), saw("no", StepStatus.TOOL_ERROR)], 0),  # tried again
        ([saw("no", StepStatus.TOOL_ERROR), saw("1"), saw("1")], 1),
        ([saw("1", a=1), saw("1", a=1.0)], 0),
        ([FINISHED, FINISHED, Step(None, StepStatus.MALFORMED, ""), Step(None, StepStatus.MALFORMED, "")], 0),
    ],
)
def test_redundant_steps_by_hand(steps, redundant):
    assert sum(find_redundant_steps(steps)) == redundant


@given(st.lists(st.tuples(st.sampled_from("fg"), st.sampled_from("12"), st.sampled_from(["ok", "tool_error"]))))
def test_the_first_successful_call_of_each_kind_is_never_redundant(made):
    steps = [saw(observation, StepStatus(status), name=name) for name, observation, status in made]
    succeeded = [name for name, _, status in made if status == "ok"]
    assert 0 <= sum(find_redundant_steps(steps)) <= len(succeeded) - len(set(succeeded))
    assert sum(find_redundant_steps([*steps, *steps[-1:]])) == sum(find_redundant_steps(steps)) + sum(
        m[2] == "ok" for m in made[-1:]
    )


def test_redundancy_is_what_repeats_and_what_they_earn(make_step, make_trajectory):
    """The second of three calls repeats the first and earns -.1; an episode without rewards does not count."""
    look = make_step("look", "x", a=1)
    episode = make_trajectory([look, look, make_step("look", "y", a=2)], "done")
    redundancy = measure_redundancy([episode, episode], [np.array([0.3, -0.1, 0.2, 1.0]), None])
    assert redundancy == Redundancy(3, 1, pytest.approx(-0.1))
    assert measure_redundancy([make_trajectory([look], "done")], [np.array([0.3, 1.0])]) == Redundancy(1, 0, None)
