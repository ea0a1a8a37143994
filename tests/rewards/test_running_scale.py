import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.rewards.compose import RunningScale

ROUNDS = st.lists(st.lists(st.floats(-10, 10), max_size=6), min_size=1, max_size=5)


@given(ROUNDS)
def test_the_state_of_all_rounds_is_that_of_all_rewards_at_once(rounds: list[list[float]]) -> None:
    scale = RunningScale()
    for rewards in rounds:
        scale = scale.after([np.array(rewards), None])
    every = np.array([r for rewards in rounds for r in rewards])
    assert scale.count == every.size
    if every.size and every.std() > 1e-6:
        assert scale.mean == pytest.approx(every.mean(), abs=1e-9)
        assert scale.deviation == pytest.approx(every.std())


def test_rewards_are_divided_and_nothing_is_taken_off() -> None:
    scale = RunningScale().after([np.array([0.0, 2.0]), np.array([4.0])])  # deviation sqrt(8 / 3)
    halved, missing = scale.apply([np.array([0.0, np.sqrt(8 / 3)]), None])
    assert missing is None and halved is not None
    np.testing.assert_allclose(halved, [0.0, 1.0])
    assert RunningScale().after([np.array([3.0, 3.0])]).deviation == 1.0
    assert RunningScale().deviation == 1.0


def test_the_state_travels_in_a_file_and_a_round_run_again_finds_the_same(tmp_path) -> None:
    first = RunningScale().after([np.array([0.0, 1.0])])
    file = first.save(tmp_path / "scale.json")
    assert RunningScale.load(file) == first
    assert RunningScale.load(file).after([np.array([5.0])]) == first.after([np.array([5.0])])
    assert RunningScale.load(file) == first
