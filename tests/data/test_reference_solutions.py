import json
from dataclasses import replace

import pytest

from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.data.parsing import IngestError, IngestLog
from steptool.data.sources import play_reference_solutions
from steptool.environments.desk.tasks import draw_query
from steptool.records import Reference, StepStatus, StopReason, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records

SHOP = '''
class Shop:
    def count(self) -> int:
        """Count the kettles."""
        return 3

    def reserve(self, day: int) -> str:
        """Reserve a kettle.

        Args:
            day: Day of the month.
        """
        if day > 31:
            raise ValueError("no such day")
        return f"reserved for day {day}"

    def solved(self, final_answer: str | None, reference: dict) -> float:
        return float(final_answer == reference["anwser"])
'''
QUERIES = [draw_query("train", tier, f"played.{number}") for number in range(4) for tier in ("single", "long")]
CONFIG = Config.model_validate({"warm_start": {"demonstrations": 5}})


def test_reference_solutions_of_training_queries_become_demonstrations():
    log = IngestLog()
    other_writes = {**QUERIES[1].reference.environment, "writes": [["cancel", "nothing"]]}
    unsolvable = replace(QUERIES[1], reference=replace(QUERIES[1].reference, environment=other_writes))
    without = replace(QUERIES[2], reference=Reference(environment=QUERIES[2].reference.environment))
    demonstrations = list(play_reference_solutions([QUERIES[0], unsolvable, without, *QUERIES[4:]], CONFIG, log))
    assert [t.query_id for t in demonstrations] == [q.query_id for q in (QUERIES[0], *QUERIES[4:7])]
    assert all(t.solved == 1.0 and t.steps[-1].status is StepStatus.FINISH for t in demonstrations)
    calls = tuple(step.call for step in demonstrations[0].steps[:-1])
    assert calls == QUERIES[0].reference.calls and demonstrations[0].final_answer == ""
    assert log.counts == {
        "reference solutions read": 5,
        "reference solutions kept": 4,
        "reference solutions dropped: the reference solution does not solve its task": 1,
    }


def test_a_long_solution_plays_to_its_end_and_a_limit_of_the_task_is_named():
    query = next(q for q in QUERIES if len(q.reference.calls) > 3)
    log = IngestLog()
    short = Config.model_validate({"rollout": {"max_steps": 2}})
    (whole,) = play_reference_solutions([query, replace(query, max_steps=3)], short, log)
    assert whole.solved == 1.0 and len(whole.steps) == len(query.reference.calls) + 1
    assert log.counts == {
        "reference solutions read": 2,
        "reference solutions kept": 1,
        "reference solutions dropped: the reference solution takes more steps than its task's max_steps": 1,
    }


def test_nothing_is_played_without_a_warm_start_or_live_tools():
    off = Config.model_validate({"warm_start": {"steps": 0}})
    assert list(play_reference_solutions(QUERIES, off, IngestLog())) == []
    assert (
        list(play_reference_solutions([replace(q, environment="replay") for q in QUERIES], CONFIG, IngestLog())) == []
    )


def test_the_shipped_example_brings_its_demonstrations_along(tmp_path):
    sections = {
        "data": {"source": "jsonl", "environment": "functions", "paths": ["examples/functions/tasks.jsonl"]},
        "tools": {"functions": "examples/functions/tools.py:Shop"},
    }
    result = ingest(Config.model_validate(sections), tmp_path / "out")
    train = [q for q in read_queries(result.queries_path) if q.split == "train"]
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert {t.query_id for t in demonstrations} == {q.query_id for q in train} and all(
        t.solved == 1.0 for t in demonstrations
    )


def test_a_check_that_fails_on_a_reference_solution_stops_ingestion_by_name(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    task = {"instruction": "How many?", "reference": {"answer": "3", "calls": [{"name": "count", "arguments": {}}]}}
    (tmp_path / "tasks.jsonl").write_text(
        "".join(json.dumps({**task, "instruction": f"How many {n}?"}) + "\n" for n in range(40))
    )
    sections = {
        "data": {"source": "jsonl", "environment": "functions", "paths": [str(tmp_path / "tasks.jsonl")]},
        "tools": {"functions": f"{tmp_path / 'shop.py'}:Shop"},
    }
    message = r"the check of the task '.+' failed on its reference solution: .*'solved' failed: KeyError: 'anwser'"
    with pytest.raises(IngestError, match=message):
        ingest(Config.model_validate(sections), tmp_path / "out")


OPEN_SHOP = SHOP.replace('return float(final_answer == reference["anwser"])', "return 1.0")
CALLS = {
    "fits": [{"name": "reserve", "arguments": {"day": 3}}],
    "misspelt": [{"name": "count", "arguments": {}}, {"name": "reserve", "arguments": {"weekday": 3}}],
    "raises": [{"name": "reserve", "arguments": {"day": 32}}],
    "nothing": [],
}


def shop(tmp_path, calls=CALLS, recorded=(), **data):
    (tmp_path / "shop.py").write_text(OPEN_SHOP)
    tasks = [
        {"instruction": f"{name}?", "id": name, "split": "train", "reference": {"calls": call_names}}
        for name, call_names in calls.items()
    ]
    tasks.append({"instruction": "Who knows?", "id": "unknown", "split": "train"})
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (tmp_path / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorded))
    answers = [str(tmp_path / "logs.jsonl")] if recorded else []
    files = {"source": "jsonl", "paths": [str(tmp_path / "tasks.jsonl")], "recorded_answers": answers}
    sections = {
        "data": {"environment": "functions", **files, **data},
        "tools": {"functions": f"{tmp_path / 'shop.py'}:Shop"},
    }
    return ingest(Config.model_validate(sections), tmp_path / "out", for_training=False)


def test_solutions_with_a_failing_call_are_left_out_with_task_call_and_reason(tmp_path):
    result = shop(tmp_path)
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert [d.query_id for d in demonstrations] == ["fits", "nothing"]
    assert result.counts == {
        "queries read": 5, "queries kept": 5, "reference solutions read": 4, "reference solutions kept": 2,
        "reference solutions dropped: a call of the reference solution fails": 2,
    }  # fmt: skip
    misspelt, raises = map(json.loads, result.quarantine_path.read_text().splitlines())
    assert (misspelt["kind"], misspelt["row"], raises["row"]) == ("reference solutions", "misspelt", "raises")
    assert "query 'misspelt': call 1, reserve({\"weekday\": 3}): invalid_arguments" in misspelt["detail"]
    assert "query 'raises': call 0, reserve({\"day\": 32}): tool_error" in raises["detail"]
    assert "no such day" in raises["detail"]


def test_solutions_with_a_failing_call_are_kept_where_the_configuration_says_so(tmp_path):
    result = shop(tmp_path, keep_failing_solutions=True)
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert [d.query_id for d in demonstrations] == list(CALLS)


def test_a_solution_without_calls_is_a_finish_alone_and_an_absent_one_is_none(tmp_path):
    result = shop(tmp_path, {"nothing": []})
    queries = {q.query_id: q.reference.calls for q in read_queries(result.queries_path)}
    assert queries == {"nothing": (), "unknown": None}
    (demonstration,) = read_records(result.demonstrations_path, Trajectory)
    assert [step.status for step in demonstration.steps] == [StepStatus.FINISH]
    assert (demonstration.query_id, demonstration.stop_reason) == ("nothing", StopReason.FINISHED)


def test_recordings_and_reference_solutions_are_demonstrations_side_by_side(tmp_path):
    texts = ("fits?", "Who knows?")
    recorded = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Me."}]} for text in texts
    ]
    result = shop(tmp_path, recorded=recorded)
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert [(d.policy, d.query_id) for d in demonstrations] == [
        ("recorded", "fits"), ("recorded", "unknown"), ("reference", "fits"), ("reference", "nothing"),
    ]  # fmt: skip
    assert len({d.trajectory_id for d in demonstrations}) == 4
    assert (result.counts["demonstrations kept"], result.counts["reference solutions kept"]) == (2, 2)
