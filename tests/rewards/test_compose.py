from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from full_disk import stop_files_at
from steptool.config import RewardConfig
from steptool.records import Query, Step, StepReward, StepStatus, ToolCall, Trajectory
from steptool.rewards.annotators import annotate, make_annotator
from steptool.rewards.compose import RunningScale, compose, compose_steps


def plain_settings(**fields: object) -> RewardConfig:
    """Settings without a cost of redundant calls, which needs the steps beside their scores."""
    return RewardConfig.model_validate({"redundant_cost": 0.0, **fields})


def rows(succ, contribution, is_solved):
    last = len(succ) - 1
    return [
        StepReward("t", i, "rules", "1", "", s, c, is_solved if i == last else None)
        for i, (s, c) in enumerate(zip(succ, contribution, strict=True))
    ]


EPISODE = rows([1, 0, 1], [1, 0, None], 0.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # bonus: .5 * (.4 * 1 + 1), .5 * (.4 * 0 + 0); penalty: .5 * (.4 * 0 + 1), .5 * (.4 * -1 + 0)
        ({"succ_calling": "bonus"}, [0.7, 0.0, 0.5]),
        ({"succ_calling": "penalty"}, [0.5, -0.2, 0.5]),
        ({"succ_calling": "bonus", "normalisation": "trajectory"}, [0.35, 0.0, 0.5]),
        ({"succ_calling": "penalty", "normalisation": "trajectory"}, [0.25, -0.1, 0.5]),
        ({"step_weight": 0.0}, [0.0, 0.0, 0.5]),
    ],
)
def test_rewards_by_hand(changes, expected):
    config = plain_settings(**{"alpha": 0.4, "step_weight": 0.5, **changes})
    np.testing.assert_allclose(compose(EPISODE, config, "step"), expected)


def test_progress_is_the_growth_of_a_potential_by_hand():
    """Two are needed. Contributions 1, 0, .5, 1, 1 make potentials .5, .5, .75, 1, 1; half the growth is paid."""
    episode = rows([1] * 6, [1, 0, 0.5, 1, 1, None], 1.0)
    config = plain_settings(alpha=0.0, step_weight=0.5, contribution="progress", progress_steps=2)
    np.testing.assert_allclose(compose(episode, config), [0.25, 0.0, 0.125, 0.125, 0.0, 1.0])


def states(names: str) -> list[Step]:
    """Steps before which the environment is in the states of these names."""
    return [Step(ToolCall("act", {}), StepStatus.OK, "", state) for state in names]


def test_a_step_that_undoes_gives_back_what_was_earned_by_hand():
    """Two are needed: a change, a look, the change undone, a look, and the change made again."""
    episode = rows([1] * 6, [1, 0.5, 1, 0, 1, None], 1.0)
    config = plain_settings(alpha=0.0, step_weight=1.0, contribution="progress", progress_steps=2)
    # sums that stand: 1, 1.5, .5 (the look stays, the undoing itself earns nothing), .5, 1.5
    rewards = compose(episode, config, steps=states("abbaab"))
    np.testing.assert_allclose(rewards, [0.5, 0.25, -0.5, 0.0, 0.5, 1.0])
    unknown = compose(episode, config, steps=[replace(step, state=None) for step in states("abbaab")])
    np.testing.assert_allclose(unknown, [0.5, 0.25, 0.25, 0.0, 0.0, 1.0])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=2, max_size=20), st.integers(1, 10))
def test_a_way_that_ends_where_it_began_earns_what_its_looks_have_brought(way, needed):
    """Progress telescopes: only steps that changed nothing are left of a round trip."""
    names = "".join(name for name, _ in way) + way[0][0]
    contributions = [contribution for _, contribution in way]
    config = plain_settings(alpha=0.0, step_weight=1.0, contribution="progress", progress_steps=needed)
    episode = rows([1] * len(names), [*contributions, None], 0.0)
    looks = sum(c for c, before, after in zip(contributions, names, names[1:], strict=False) if before == after)
    assert compose(episode, config, steps=states(names)).sum() == pytest.approx(min(1.0, looks / needed))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 10))
def test_progress_sums_to_at_most_one_however_many_steps_are_made(contributions, needed):
    config = plain_settings(alpha=0.0, step_weight=1.0, contribution="progress", progress_steps=needed)
    episode = rows([1] * (len(contributions) + 1), [*contributions, None], 0.0)
    rewards = compose(episode, config)
    assert rewards.sum() == pytest.approx(min(1.0, sum(contributions) / needed))
    assert all(r == 0 for r, c in zip(rewards, contributions, strict=False) if c == 0)


def test_a_redundant_call_costs_by_hand(make_step, make_trajectory):
    """Penalty with alpha .4: .5 * (0 + 1), .5 * (0 + 0 - .6) for the repeat, and the outcome."""
    look = make_step("look", "x", a=1)
    episode = make_trajectory([look, look], "done", trajectory_id="t")
    scores = rows([1, 1, 1], [1, 0, None], 1.0)
    config = plain_settings(alpha=0.4, step_weight=0.5, redundant_cost=0.6)
    np.testing.assert_allclose(compose(scores, config, steps=episode.steps), [0.5, -0.3, 1.0])
    np.testing.assert_allclose(compose_steps([episode], scores, config)[0], [0.5, -0.3, 1.0])
    assert compose(scores, config, "final", episode.steps).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="needs the 3 steps of the trajectory, got 0"):
        compose(scores, config)


def test_the_default_punishes_a_redundant_call_by_hand(make_step, make_trajectory):
    """.3 for the look that contributes, .3 * (0 - .5) for its repeat."""
    look = make_step("look", "x", a=1)
    episode = make_trajectory([look, look], "done", trajectory_id="t")
    rewards = compose(rows([1, 1, 1], [1, 0, None], 1.0), RewardConfig(), steps=episode.steps)
    np.testing.assert_allclose(rewards, [0.3, -0.15, 1.0])


def test_final_reward_is_is_solved_alone():
    assert compose(EPISODE, plain_settings(), "final").tolist() == [0, 0, 0.5]


def test_an_episode_of_one_step_has_only_its_verdict():
    for normalisation in ("none", "trajectory"):
        assert compose(rows([0], [None], 1.0), plain_settings(normalisation=normalisation), "step").tolist() == [1]


def test_the_order_of_the_rows_does_not_matter():
    config = plain_settings()
    assert compose(EPISODE[::-1], config, "step").tolist() == compose(EPISODE, config, "step").tolist()


def test_missing_scores_are_missing_rewards_never_zeros():
    config = plain_settings()
    assert compose(rows([1, None, 1], [1, 0, None], 1.0), config, "step") is None
    assert compose(rows([1, 1, 1], [None, 0, None], 1.0), config, "step") is None
    assert compose(rows([1, 1, 1], [1, 0, None], None), config, "step") is None
    assert compose(rows([None, 1, 1], [None, 0, None], 1.0), config, "final").tolist() == [0, 0, 1]
    assert compose(rows([1, 1], [1, None], None), config, "final") is None
    assert compose([], config, "step") is None


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(0, 1)), max_size=8),
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.floats(0, 2),
    st.floats(0, 2),
)
def test_under_penalty_useless_calls_gain_nothing(steps, insertions, is_solved, alpha, step_weight):
    """Calls that succeed and contribute nothing, put anywhere, never raise the sum of an episode's rewards."""
    config = plain_settings(alpha=alpha, step_weight=step_weight, succ_calling="penalty")

    def total(episode):
        finished = [*episode, (1.0, None)]
        return compose(rows([s for s, _ in finished], [c for _, c in finished], is_solved), config, "step").sum()

    padded = list(steps)
    for place in insertions:
        padded.insert(place % (len(padded) + 1), (1.0, 0.0))
    assert total(padded) == pytest.approx(total(steps), abs=1e-9)


def test_the_published_bonus_can_be_farmed():
    config = plain_settings(succ_calling="bonus")
    assert compose(rows([1] * 9, [0] * 8 + [None], 0.0), config, "step").sum() > 0


def test_rows_of_several_trajectories_or_annotators_are_refused():
    other = [replace(row, annotator="truth") for row in EPISODE]
    with pytest.raises(ValueError, match="one trajectory by one annotator"):
        compose([*EPISODE[:2], other[2]], plain_settings(), "step")
    with pytest.raises(ValueError, match="one score for each step"):
        compose([EPISODE[0], EPISODE[2]], plain_settings(), "step")


def test_rewards_follow_the_order_of_the_trajectories_and_missing_ones_stay_missing(
    make_query: Callable[..., Query], make_step: Callable[..., Step], make_trajectory: Callable[..., Trajectory]
) -> None:
    call = make_step("find_order", {"order": "4711"}, name="mira")
    short = make_trajectory([], "done", trajectory_id="short", solved=1.0)
    long = make_trajectory([call, call], "4711", trajectory_id="long", solved=0.0)
    unscored = replace(long, trajectory_id="unscored")
    rows = annotate([make_query()], [short, long], make_annotator("rules"))
    rewards = compose_steps([long, unscored, short], rows[::-1], plain_settings())
    assert [None if r is None else len(r) for r in rewards] == [3, None, 1]
    final = compose_steps([long, short], rows, plain_settings(), "final")
    np.testing.assert_array_equal(final[0][:-1], [0.0, 0.0])


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


def test_a_full_disk_leaves_the_state_that_was_there(tmp_path) -> None:
    file = RunningScale(count=1.0).save(tmp_path / "scale.json")
    with stop_files_at(20), pytest.raises(OSError, match="File too large"):
        RunningScale(count=2.0).save(file)
    assert RunningScale.load(file) == RunningScale(count=1.0)
    assert list(tmp_path.iterdir()) == [file]
