from collections.abc import Callable

import pytest

from steptool.artifacts.contracts import REWARDS, Cost, read_costs, read_rows
from steptool.artifacts.rows import query_row, read_queries, write_queries, write_trajectories
from steptool.records import Query, Step, Trajectory
from steptool.rewards.annotators import annotate, annotator
from steptool.rewards.stream import QueryTable, annotate_file


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
    asked = write_queries(tmp_path / "queries.parquet", queries)
    played = write_trajectories(tmp_path / "trajectories.parquet", episodes)
    seconds = iter([1.5])
    target = annotate_file(
        asked, played, annotator("rules"), tmp_path / "r.parquet", lambda: Cost("annotate", seconds=next(seconds))
    )
    assert read_rows(target, REWARDS) == annotate(queries, episodes, annotator("rules"))
    assert [c.seconds for c in read_costs(target)] == [1.5]


def test_a_table_of_queries_is_the_queries(tmp_path, make_query: Callable[..., Query]) -> None:
    queries = [make_query(query_id=f"q{n}", tools=({"same": 1},), reference={"answer": str(n)}) for n in range(3)]
    table = QueryTable(write_queries(tmp_path / "queries.parquet", queries))
    assert (list(table), len(table)) == (["q0", "q1", "q2"], 3)
    assert [query_row(table[q]) for q in table] == [query_row(q) for q in read_queries(tmp_path / "queries.parquet")]
    with pytest.raises(KeyError):
        table["q9"]
