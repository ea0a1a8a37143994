from dataclasses import replace

import pytest

from steptool.config import Config, EvaluatedPolicy
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_desk_queries
from steptool.policies.catalog import open_policy
from steptool.policies.text_policies import list_recorded_calls, list_reference_calls, play_back
from steptool.records import Reference, ToolCall
from steptool.rollout.episode import Decoding, TurnCost
from steptool.rollout.runner import roll_out

SETTINGS = {"data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 2}, "rollout": {"max_steps": 16}}
CONFIG = Config.model_validate(SETTINGS)


@pytest.fixture
def queries():
    return [q for q in draw_desk_queries(CONFIG) if q.split == "heldout"]


@pytest.fixture
def recordings(queries):
    """Two recordings of the first query: one call, then the whole solution."""
    calls = list_reference_calls(queries[0])
    return play_back([(queries[0], calls[:1]), (queries[0], calls)], DeskEnvironment(), limits=CONFIG.tools)


@pytest.mark.parametrize("strategy", ["chain", "dfsdt"])
def test_a_model_plays_with_its_strategy(strategy, queries):
    settings = EvaluatedPolicy(name="small", model="embedded", strategy=strategy)
    one_turn = Config.model_validate({**SETTINGS, "evaluation": {"search": {"max_turns": 1}}})
    with open_policy(settings, one_turn) as policy:
        episodes = roll_out(policy, queries, DeskEnvironment(), decoding=Decoding.GREEDY)
    trajectories = [episode.trajectory for episode in episodes]
    assert [(t.policy, t.query_id) for t in trajectories] == [("small", q.query_id) for q in queries]
    turns = [t.sampled_turns for t in trajectories]
    assert turns == [1, 1] if strategy == "dfsdt" else min(turns) > 1
    assert all(t.sampled_tokens for t in trajectories)
    assert [episode.cost for episode in episodes] == [TurnCost(t.sampled_tokens) for t in trajectories]


def test_greedy_and_sampled_episodes_of_a_query_have_ids_of_their_own(queries):
    settings = EvaluatedPolicy(name="small", model="embedded")
    with open_policy(settings, CONFIG) as policy:
        episodes = [
            episode.trajectory.trajectory_id
            for decoding in Decoding
            for episode in roll_out(policy, [*queries, *queries], DeskEnvironment(), decoding=decoding)
        ]
    assert len(set(episodes)) == len(episodes) == 8


def test_playback_takes_the_reference_and_else_the_first_recording(queries, recordings):
    unsolved = replace(queries[0], reference=replace(queries[0].reference, calls=None))
    settings = EvaluatedPolicy(name="expert", kind="playback")
    with open_policy(settings, CONFIG, recordings) as policy:
        first, second = (e.trajectory for e in roll_out(policy, [unsolved, queries[1]], DeskEnvironment()))
        bare = replace(queries[1], reference=Reference("7"))
        with pytest.raises(ValueError, match="neither reference calls nor a recorded answer"):
            roll_out(policy, [bare], DeskEnvironment())
    give_up = ToolCall("Finish", {"return_type": "give_up_and_restart"})
    assert list_recorded_calls(first) == [*list_reference_calls(queries[0])[:1], give_up] and first.solved == 0.0
    assert list_recorded_calls(second) == list_reference_calls(queries[1]) and second.solved == 1.0


def test_doing_nothing_is_a_reference_solution(queries):
    nothing = replace(queries[0], reference=replace(queries[0].reference, calls=[]))
    with open_policy(EvaluatedPolicy(name="expert", kind="playback"), CONFIG) as policy:
        (episodes,) = roll_out(policy, [nothing], DeskEnvironment())
    assert [step.call.name for step in episodes.trajectory.steps if step.call] == ["Finish"]
