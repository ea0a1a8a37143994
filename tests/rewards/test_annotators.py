import json
from collections.abc import Callable

import pytest

from steptool.judge.annotator import StepScore
from steptool.records import Query, Reference, Step, StepReward, StepStatus, Trajectory
from steptool.records.columns import to_row
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, write_records
from steptool.rewards.annotators import ANNOTATORS, annotate, annotate_file, make_annotator
from steptool.storage.sqlite import QueryTable


class Generous:
    """An annotator of a user's own."""

    name, version, prompt_hash = "generous", "7", "abc"

    def annotate(self, query, trajectory):
        return [StepScore(1.0, None, votes={"judges": [5, 4]}, rationale="nice \ud800") for _ in trajectory.steps]


class Forgetful(Generous):
    def annotate(self, query, trajectory):
        return super().annotate(query, trajectory)[1:]


def test_an_unknown_annotator_is_refused_with_the_known_names():
    with pytest.raises(
        ValueError, match="unknown annotator 'oracle': expected one of judge, lcs, overlap, rules, truth"
    ):
        make_annotator("oracle")


@pytest.mark.parametrize("name", sorted(ANNOTATORS))
def test_annotators_are_stored_under_their_name(name, make_query, make_step, make_trajectory):
    rows = annotate([make_query()], [make_trajectory([make_step("f", {"a": 1})], "1")], make_annotator(name))
    assert {(r.annotator, r.annotator_version, r.prompt_hash) for r in rows} == {
        (name, make_annotator(name).version, "")
    }


def test_rows_keep_their_contract_and_what_is_missing_stays_missing(tmp_path, make_query, make_step, make_trajectory):
    rows = annotate([make_query()], [make_trajectory([make_step("f", {"a": 1})], "1")], Generous())
    path = write_records(tmp_path / "rewards.parquet", rows, StepReward)
    first, last = read_records(path, StepReward)
    assert (first.step, first.succ_calling, first.contribution, first.is_solved) == (0, 1.0, None, None)
    assert json.loads(first.votes) == {"judges": [5, 4]}
    assert (last.step, last.annotator, last.prompt_hash) == (1, "generous", "abc")


def test_a_trajectory_of_an_unknown_query_is_refused(make_query, make_trajectory):
    with pytest.raises(ValueError, match="trajectory 't1' answers the query 'q1', which is not among the 1 queries"):
        annotate([make_query(query_id="q2")], [make_trajectory([], "1")], make_annotator("rules"))


def test_an_annotator_that_skips_a_step_is_refused(make_query, make_trajectory):
    with pytest.raises(ValueError, match="annotator 'generous' gave 0 scores for the 1 steps of trajectory 't1'"):
        annotate([make_query()], [make_trajectory([], "1")], Forgetful())


def test_truth_consumes_each_reference_call_once(make_query, make_step, make_trajectory):
    query = make_query(
        reference=Reference.from_json(
            {"calls": [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "a"}}]}
        )
    )
    trajectory = make_trajectory(
        [
            make_step("g", {"error": "busy"}, StepStatus.TOOL_ERROR, y="a"),
            make_step("g", "{}", y="a"),
            make_step("g", "{}", y="a"),
            make_step("f", "{}", x=2),
            make_step("f", "{}", x=1),
        ],
        "done",
        solved=1.0,
    )
    rows = annotate([query], [trajectory], make_annotator("truth"))
    assert [r.contribution for r in rows] == [0, 1, 0, 0, 1, None]
    assert [r.succ_calling for r in rows] == [0, 1, 1, 1, 1, 1]
    assert [r.is_solved for r in rows] == [None, None, None, None, None, 1.0]


def test_where_there_is_no_truth_the_scores_are_missing(make_query, make_step, make_trajectory):
    rows = annotate([make_query()], [make_trajectory([make_step("f", "{}")], "done")], make_annotator("truth"))
    assert [(r.contribution, r.is_solved) for r in rows] == [(None, None), (None, None)]


def test_files_are_scored_as_lists_are(
    tmp_path,
    make_query: Callable[..., Query],
    make_step: Callable[..., Step],
    make_trajectory: Callable[..., Trajectory],
) -> None:
    queries = [make_query(query_id=f"q{n}", instruction=f"task {n}", tools=({"n": n % 2},)) for n in range(5)]
    step = make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03")
    episodes = [
        make_trajectory([step] * (n % 3), "ord_07", trajectory_id=f"t{n}", query_id=f"q{n % 5}") for n in range(150)
    ]
    queries_file = write_records(tmp_path / "queries.parquet", queries, Query)
    played = write_records(tmp_path / "trajectories.parquet", episodes, Trajectory)
    target = annotate_file(queries_file, played, make_annotator("rules"), tmp_path / "r.parquet")
    assert read_records(target, StepReward) == annotate(queries, episodes, make_annotator("rules"))


def test_a_table_of_queries_is_the_queries(tmp_path, make_query: Callable[..., Query]) -> None:
    queries = [make_query(query_id=f"q{n}", tools=({"same": 1},), reference=Reference(answer=str(n))) for n in range(3)]
    table = QueryTable(write_records(tmp_path / "queries.parquet", queries, Query))
    assert (list(table), len(table)) == (["q0", "q1", "q2"], 3)
    assert [to_row(table[q]) for q in table] == [to_row(q) for q in read_queries(tmp_path / "queries.parquet")]
    with pytest.raises(KeyError):
        table["q9"]
