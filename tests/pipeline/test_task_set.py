from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.config import Config, EvaluationConfig
from steptool.data.splits import draw_round_positions, select_shard_positions
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_desk_queries, draw_query
from steptool.pipeline.episodes import TaskSet
from steptool.policies.text_policies import list_reference_calls, play_back
from steptool.records import Query, Trajectory
from steptool.records.tables import write_records


@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 6), st.integers(-3, 3))
def test_nothing_is_drawn_twice_before_everything_came_once(total: int, episodes: int, rounds: int, seed: int) -> None:
    draws = Counter(p for r in range(rounds) for p in draw_round_positions(total, episodes, r, seed))
    assert draws.total() == episodes * rounds
    assert max(draws.values()) - min(draws[p] for p in range(total)) <= 1


def test_rounds_repeat_exactly_and_depend_on_the_seed() -> None:
    assert draw_round_positions(100, 10, 2, seed=0) == draw_round_positions(100, 10, 2, seed=0)
    assert draw_round_positions(100, 10, 2, seed=0) != draw_round_positions(100, 10, 2, seed=1)


def test_a_second_pass_has_another_order() -> None:
    assert draw_round_positions(50, 50, 0, seed=0) != draw_round_positions(50, 50, 1, seed=0)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 7), st.integers(0, 5))
def test_shards_share_out_the_round_and_keep_repeats_together(
    total: int, episodes: int, shards: int, round: int
) -> None:
    # a round that begins a second pass may hold a position twice, and each shard needs one of its own
    shards = min(shards, len(set(draw_round_positions(total, episodes, round, 3))))
    parts = [select_shard_positions(total, episodes, round, 3, shard=s, shards=shards) for s in range(shards)]
    assert Counter(p for part in parts for p in part) == Counter(draw_round_positions(total, episodes, round, 3))
    assert all(set(a).isdisjoint(b) for i, a in enumerate(parts) for b in parts[:i])


def test_shards_of_a_round_without_repeats_are_equally_large() -> None:
    assert [len(select_shard_positions(100, 10, 0, 0, shard=s, shards=4)) for s in range(4)] == [3, 3, 2, 2]


def test_a_shard_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        select_shard_positions(3, 3, 0, 0, shard=2, shards=2)


def test_a_round_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_round_positions(0, 3, 0, 0)


def test_a_shard_that_would_stay_empty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 episodes on 2 training queries does not fill 3 shards"):
        select_shard_positions(2, 5, 0, 0, shard=2, shards=3)


def test_a_round_takes_training_queries_only_and_each_once(tmp_path: Path) -> None:
    queries = [Query(f"q{n}", ("train", "heldout")[n % 2], "desk", f"task {n}", ()) for n in range(12)]
    path = write_records(tmp_path / "queries.parquet", queries, Query)
    config = Config.model_validate({"rollout": {"episodes": 6, "shards": 2}})
    tasks = TaskSet.write(tmp_path / "tasks", path, tmp_path / "never written.parquet", config)
    parts = [tasks.read_round_queries(config, 0, shard) for shard in range(2)]
    assert sorted(q.query_id for part in parts for q in part) == sorted(
        q.query_id for q in queries if q.split == "train"
    )
    assert all(q == queries[int(q.query_id[1:])] for part in parts for q in part)


def test_the_tries_at_a_query_follow_each_other_in_one_shard(tmp_path: Path) -> None:
    queries = [Query(f"q{n}", "train", "desk", f"task {n}", ()) for n in range(10)]
    path = write_records(tmp_path / "queries.parquet", queries, Query)
    config = Config.model_validate({"rollout": {"episodes": 12, "samples_per_query": 4, "shards": 2}})
    tasks = TaskSet.write(tmp_path / "tasks", path, tmp_path / "never written.parquet", config)
    parts = [[q.query_id for q in tasks.read_round_queries(config, 0, shard)] for shard in range(2)]
    assert [len(part) for part in parts] == [8, 4]
    assert all(len(set(part[start : start + 4])) == 1 for part in parts for start in range(0, len(part), 4))
    assert len({query for part in parts for query in part}) == 3
    later = {q.query_id for shard in range(2) for q in tasks.read_round_queries(config, 1, shard)}
    assert later.isdisjoint(parts[0] + parts[1])


def test_an_evaluation_plays_its_split_and_recorded_queries_alone_if_so_configured(tmp_path):
    config = Config.model_validate({"data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 2}})
    every = draw_desk_queries(config)
    heldout = [q for q in every if q.split == "heldout"]
    solution = play_back([(heldout[0], list_reference_calls(heldout[0]))], DeskEnvironment(), limits=config.tools)
    queries = write_records(tmp_path / "queries.parquet", every, Query)
    recordings = write_records(tmp_path / "recorded.parquet", solution, Trajectory)

    def choose(**settings):
        evaluation = EvaluationConfig(**settings)
        folder = tmp_path / "_".join(map(str, settings.values()))
        tasks = TaskSet.write(folder, queries, recordings, config.model_copy(update={"evaluation": evaluation}))
        return tasks.read_evaluation_queries(evaluation)

    assert choose(split="heldout") == heldout and choose(split="all") == every
    assert choose(split="all", recorded_only=True) == heldout[:1]
    with pytest.raises(ValueError, match=r"evaluation\.recorded_only: no query of the split 'validation'"):
        choose(split="validation", recorded_only=True)


@pytest.mark.parametrize(
    ("environment", "evaluation", "needed"),
    [
        ("desk", {}, False),
        ("replay", {}, True),
        ("desk", {"recorded_only": True}, True),
        ("desk", {"policies": [{"name": "expert", "kind": "playback"}]}, True),
        ("desk", {"policies": [{"name": "theirs", "kind": "playback", "recordings": ["theirs.jsonl"]}]}, False),
    ],
)
def test_a_set_of_tasks_holds_recordings_only_where_something_answers_from_them(
    tmp_path, environment, evaluation, needed
):
    queries = write_records(tmp_path / "queries.parquet", [Query("q0", "train", environment, "go", ())], Query)
    query = draw_query("train", "single", "schedule")
    solution = play_back([(query, list_reference_calls(query))], DeskEnvironment(), limits=Config().tools)
    demonstrations = write_records(tmp_path / "demonstrations.parquet", solution, Trajectory)
    config = Config.model_validate({"evaluation": evaluation})
    tasks = TaskSet.write(tmp_path / "tasks", queries, demonstrations, config)
    assert [t.query_id for t in tasks.read_recordings()] == ([query.query_id] if needed else [])
