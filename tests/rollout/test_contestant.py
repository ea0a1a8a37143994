from dataclasses import replace

import pytest

from steptool.config import Config, EvaluatedPolicy, EvaluationConfig
from steptool.contracts.tables import write_records
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import desk_queries
from steptool.models.load import EMBEDDED
from steptool.policies.contestant import contestant, questions
from steptool.policies.scripted import play_back, recorded_calls, reference_calls
from steptool.records import Query, ToolCall, Trajectory

SETTINGS = {"data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 2}, "rollout": {"max_steps": 16}}
CONFIG = Config.model_validate(SETTINGS)


@pytest.fixture
def queries():
    return [q for q in desk_queries(CONFIG) if q.split == "heldout"]


@pytest.fixture
def recorded(queries, tmp_path):
    """A file with two recordings of the first query: one call, then the whole solution."""
    calls = reference_calls(queries[0])
    settings = {"rollout": CONFIG.rollout, "limits": CONFIG.tools}
    episodes = play_back([(queries[0], calls[:1]), (queries[0], calls)], DeskEnvironment(), **settings)
    return write_records(tmp_path / "recorded.parquet", episodes, Trajectory)


@pytest.mark.parametrize("strategy", ["chain", "dfsdt"])
def test_a_model_plays_with_its_strategy(strategy, queries, recorded):
    policy = EvaluatedPolicy(name="small", model="embedded", strategy=strategy)
    one_turn = Config.model_validate({**SETTINGS, "evaluation": {"search": {"max_turns": 1}}})
    with contestant(policy, EMBEDDED, queries, recorded, one_turn) as play:
        played = play(greedy=True)
    assert [(t.policy, t.query_id) for t in played.trajectories] == [("small", q.query_id) for q in queries]
    turns = [t.sampled_turns for t in played.trajectories]
    assert turns == [1, 1] if strategy == "dfsdt" else min(turns) > 1
    assert not played.spent and all(t.sampled_tokens for t in played.trajectories)


def test_playback_takes_the_reference_and_else_the_first_recording(queries, recorded):
    unsolved = replace(queries[0], reference={k: v for k, v in queries[0].reference.items() if k != "calls"})
    policy = EvaluatedPolicy(name="expert", kind="playback")
    with contestant(policy, "", [unsolved, queries[1]], recorded, CONFIG) as play:
        first, second = play().trajectories
    up = ToolCall("Finish", {"return_type": "give_up_and_restart"})
    assert recorded_calls(first) == [*reference_calls(queries[0])[:1], up] and first.solved == 0.0
    assert recorded_calls(second) == reference_calls(queries[1]) and second.solved == 1.0
    bare = replace(queries[1], reference={"answer": "7"})
    with pytest.raises(ValueError, match="neither reference calls nor a recorded answer"):
        contestant(policy, "", [bare], recorded, CONFIG).__enter__()


def test_the_questions_are_of_the_split_and_recorded_if_so_wished(queries, recorded, tmp_path):
    every = desk_queries(CONFIG)
    file = write_records(tmp_path / "queries.parquet", every, Query)
    asked = {
        split: [q.query_id for q in questions(file, recorded, EvaluationConfig(split=split))]
        for split in ("heldout", "all")
    }
    assert asked == {"heldout": [q.query_id for q in queries], "all": [q.query_id for q in every]}
    only = EvaluationConfig(split="all", recorded_only=True)
    assert questions(file, recorded, only) == [queries[0]]
    with pytest.raises(ValueError, match=r"evaluation\.recorded_only: no query of the split 'validation'"):
        questions(file, recorded, EvaluationConfig(split="validation", recorded_only=True))
