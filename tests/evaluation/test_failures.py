"""Kinds of failures: which calls of a failed episode were right."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.failures import Failure, classify, count_failures, table
from steptool.records import Query, Reference, StepStatus, ToolCall, Trajectory
from steptool.records.tables import write_records


@pytest.fixture
def query(make_query) -> Query:
    """Look at an order, cancel it, report the refund."""
    calls = (ToolCall("look", {"id": 1}), ToolCall("cancel", {"id": 1}), ToolCall("report", {"value": "r1"}))
    return make_query(reference=Reference(calls=calls), tier="long")


@pytest.fixture
def failed(make_step, make_trajectory) -> dict[Failure, Trajectory]:
    """An episode of each kind; each of them reports a wrong value."""
    look, cancel, wrong = (
        make_step(name, "", **arguments)
        for name, arguments in (("look", {"id": 1}), ("cancel", {"id": 1}), ("report", {"value": "r2"}))
    )
    elsewhere = make_step("cancel", "", id=2)
    refused = make_step("open_return", "unknown tool", StepStatus.UNKNOWN_TOOL, id=1)
    steps = {
        Failure.MISSING: [look, elsewhere, refused, wrong],
        Failure.UNNEEDED: [look, cancel, elsewhere, refused, wrong],
        Failure.FAILED: [look, refused, cancel, wrong],
        Failure.REPORTED: [look, cancel, wrong],
    }
    return {kind: make_trajectory(own, "done", trajectory_id=kind.name, solved=0.0) for kind, own in steps.items()}


def test_a_failure_has_the_kind_of_its_calls(query, failed, make_step, make_trajectory) -> None:
    assert {kind: classify(query, trajectory) for kind, trajectory in failed.items()} == {
        kind: kind for kind in Failure
    }
    once = make_trajectory([make_step("look", "", id=1)], "done")
    twice = replace(query, reference=Reference(calls=(ToolCall("look", {"id": 1}),) * 2))
    assert classify(twice, once) is Failure.MISSING
    bad_report = make_step("report", "bad arguments", StepStatus.INVALID_ARGUMENTS, amount=3)
    assert classify(query, make_trajectory([*failed[Failure.REPORTED].steps, bad_report])) is Failure.FAILED
    with pytest.raises(ValueError, match="task 'q1': expected the calls of a solution, got none"):
        classify(replace(query, reference=Reference()), once)


def test_solved_and_unchecked_episodes_are_no_failures(query, failed, make_trajectory) -> None:
    others = [make_trajectory([], "x", solved=1.0), make_trajectory([], "x", check_error="the check broke")]
    counts = count_failures({"q1": query}, [*failed.values(), failed[Failure.MISSING], *others])
    kinds = Counter({kind: 1 + (kind is Failure.MISSING) for kind in Failure})
    assert counts == {"all": kinds, "long": kinds}


def test_the_table_of_a_run_by_hand(query, failed, make_trajectory, tmp_path: Path) -> None:
    """Four failures in ten episodes, one of them with every call right: 25%."""
    with pytest.raises(FileNotFoundError, match="name the folder of a training run"):
        table(tmp_path)
    write_records(tmp_path / "queries.parquet", [query], Query)
    solved = [make_trajectory([], "x", trajectory_id=f"s{n}", solved=1.0) for n in range(6)]
    episodes = [*failed.values(), *solved]
    write_records(tmp_path / "evaluation_trajectories_warm_start_greedy.parquet", episodes, Trajectory)
    head, every, tier = (line.split("  ") for line in table(tmp_path).splitlines())
    assert [cell.strip() for cell in head if cell] == ["failures", *(kind.value for kind in Failure), "share right"]
    assert [cell.strip() for cell in every if cell] == ["warm start greedy, all", "4", "1", "1", "1", "1", "25.0%"]
    assert [cell.strip() for cell in tier if cell][:2] == ["warm start greedy, long", "4"]
