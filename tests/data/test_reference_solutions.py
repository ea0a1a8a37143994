import json
from dataclasses import replace

import pytest

from steptool.artifacts.queries import read_queries
from steptool.config import Config
from steptool.contracts.tables import read_records
from steptool.data.ingest import ingest
from steptool.data.ingest_log import IngestError, IngestLog
from steptool.data.reference_solutions import play_reference_solutions
from steptool.environments.desk.tasks import draw_query
from steptool.records import Reference, StepStatus, Trajectory

SHOP = '''
class Shop:
    def count(self) -> int:
        """Count the kettles."""
        return 3

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
    shown = list(play_reference_solutions([QUERIES[0], unsolvable, without, *QUERIES[4:]], CONFIG, log))
    assert [t.query_id for t in shown] == [q.query_id for q in (QUERIES[0], *QUERIES[4:7])]
    assert all(t.solved == 1.0 and t.steps[-1].status is StepStatus.FINISH for t in shown)
    calls = tuple(step.call for step in shown[0].steps[:-1])
    assert calls == QUERIES[0].reference.calls and shown[0].final_answer == QUERIES[0].reference.answer
    assert log.counts == {
        "demonstrations read": 5,
        "demonstrations kept": 4,
        "demonstrations dropped: the reference solution does not solve its task": 1,
    }


def test_a_long_solution_plays_to_its_end_and_a_limit_of_the_task_is_named():
    query = next(q for q in QUERIES if len(q.reference.calls) > 3)
    log = IngestLog()
    short = Config.model_validate({"rollout": {"max_steps": 2}})
    (whole,) = play_reference_solutions([query, replace(query, max_steps=3)], short, log)
    assert whole.solved == 1.0 and len(whole.steps) == len(query.reference.calls) + 1
    assert log.counts == {
        "demonstrations read": 2,
        "demonstrations kept": 1,
        "demonstrations dropped: the reference solution takes more steps than its task's max_steps": 1,
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
    found = ingest(Config.model_validate(sections), tmp_path / "out")
    train = [q for q in read_queries(found.queries_path) if q.split == "train"]
    shown = read_records(found.demonstrations_path, Trajectory)
    assert {t.query_id for t in shown} == {q.query_id for q in train} and all(t.solved == 1.0 for t in shown)


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
