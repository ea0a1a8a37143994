from types import SimpleNamespace

import numpy as np
import pytest

from steptool.environments.desk.environment import DeskEnvironment, make_database
from steptool.policies.text_policies import ScriptedPolicy
from steptool.records import Query, Reference, Step, StepStatus, ToolCall
from steptool.rollout.runner import roll_out
from steptool.training.credit import Groups, compare_with_group, group_trajectories, state_values


def call(name: str, **arguments: object) -> Step:
    return Step(ToolCall(name, arguments), StepStatus.OK, "")


def test_states_are_equal_where_query_and_calls_so_far_are(make: SimpleNamespace) -> None:
    malformed = Step(None, StepStatus.MALFORMED, "")
    one = make.played("q", [call("f", a=1, b=2), call("g"), call("h")])
    same_start = make.played("q", [call("f", b=2, a=1), call("x"), call("h")])  # the order of arguments says nothing
    other_query = make.played("r", [call("f", a=1, b=2), call("g")])
    broken = make.played("q", [malformed, call("f", a=1, b=2)])
    groups = group_trajectories([one, same_start, other_query, broken])
    assert groups.queries_B.tolist() == [0, 0, 1, 0]
    assert groups.query_of_S.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    # q at first: 0; after f: 1; after f g: 2; after f x: 3; r: 4, 5; q after text that is no call: 6
    assert groups.states_S.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 0, 6]


def test_states_are_equal_where_the_last_observation_is_if_so_configured(make: SimpleNamespace) -> None:
    def step(name: str, observation: str) -> Step:
        return Step(ToolCall(name, {}), StepStatus.OK, observation)

    one = make.played("q", [step("north", "a hall"), step("take", "a hall"), step("go", "end")])
    two = make.played("q", [step("south", "a hall"), step("wait", "a cave")])
    other = make.played("r", [step("north", "a hall"), step("take", "done")])
    groups = group_trajectories([one, two, other], "observation")
    # the start: 0; the hall, by any way and also a second time: 1; another query has states of its own
    assert groups.states_S.tolist() == [0, 1, 1, 0, 1, 2, 3]


def test_two_orders_of_changes_that_commute_lead_to_one_state_of_the_desk(make: SimpleNamespace) -> None:
    tables = make_database("d1").tables
    restock = ToolCall("restock", {"product_id": next(iter(tables["product"]))})
    escalate = ToolCall("escalate", {"ticket_id": next(iter(tables["ticket"]))})
    look = ToolCall("get_order", {"order_id": next(iter(tables["order"]))})
    desk = DeskEnvironment()
    reference = Reference(environment={"database": "d1", "writes": []})
    query = Query("q", "train", "desk", "go", tuple(desk.tools()), reference)
    policy = ScriptedPolicy(lambda query, sample: [*((restock, escalate), (escalate, restock))[sample], look])
    tries = [episode.trajectory for episode in roll_out(policy, [query] * 2, desk, digests=True)]
    # restock, escalate, look, give up. The start: 0; restocked: 1; both: 2, also after the look; escalated: 3
    assert group_trajectories(tries, "digest").states_S.tolist() == [0, 1, 2, 2, 0, 3, 2, 2]
    assert group_trajectories(tries, "calls").states_S.tolist() == [0, 1, 2, 3, 0, 4, 5, 6]
    without = [episode.trajectory for episode in roll_out(policy, [query] * 2, desk)]
    assert {step.state for t in without for step in t.steps} == {None}
    with pytest.raises(ValueError, match=r"credit.state: digest: step 1 of \S+ has no digest"):
        group_trajectories(without, "digest")


def test_relative_to_the_group_by_hand() -> None:
    values, groups = np.array([1.0, 5.0, 3.0, 7.0, 2.0]), np.array([0, 1, 0, 2, 0])
    # group 0: mean 2, deviation sqrt((1 + 1 + 0) / 3); groups 1 and 2 have one value each
    deviation = (2 / 3) ** 0.5
    expected = [-1 / deviation, 0, 1 / deviation, 0, 0]
    assert compare_with_group(values, groups, scale=True) == pytest.approx(expected, rel=1e-5)
    assert compare_with_group(values, groups, scale=False).tolist() == [-1, 0, 1, 0, 0]
    assert compare_with_group(np.ones(3), np.zeros(3, dtype=np.int64), scale=True).tolist() == [0, 0, 0]


def test_a_state_is_worth_the_mean_return_of_the_steps_taken_in_it() -> None:
    # two tries of two steps from one state into two others, and one try at another query
    groups = Groups(np.array([0, 0, 1]), np.array([0, 0, 0, 0, 1]), np.array([0, 1, 0, 2, 3]))
    returns = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    # state 0: (1 + 3) / 2; states 1 and 2 came up once: (1 + 2 + 3 + 4) / 4; the other query has nothing but itself
    assert state_values(returns, groups).tolist() == [2.0, 2.5, 2.0, 2.5, 9.0]
