from collections.abc import Callable
from dataclasses import replace

import numpy as np

from steptool.config import RewardConfig
from steptool.records import Query, Step, Trajectory
from steptool.rewards.annotators import annotate, annotator
from steptool.rewards.step_rewards import step_rewards


def test_rewards_follow_the_order_of_the_trajectories_and_missing_ones_stay_missing(
    make_query: Callable[..., Query], make_step: Callable[..., Step], make_trajectory: Callable[..., Trajectory]
) -> None:
    call = make_step("find_order", {"order": "4711"}, name="mira")
    short = make_trajectory([], "done", trajectory_id="short", solved=1.0)
    long = make_trajectory([call, call], "4711", trajectory_id="long", solved=0.0)
    unscored = replace(long, trajectory_id="unscored")
    rows = annotate([make_query()], [short, long], annotator("rules"))
    found = step_rewards([long, unscored, short], rows[::-1], RewardConfig())
    assert [None if r is None else len(r) for r in found] == [3, None, 1]
    final = step_rewards([long, short], rows, RewardConfig(), "final")
    np.testing.assert_array_equal(final[0][:-1], [0.0, 0.0])
