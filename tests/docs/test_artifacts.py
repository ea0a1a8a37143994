"""docs/artifacts.md: the page is what the records say, and its questions in SQL have answers."""

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from scripts.document_artifacts import PAGE, QUESTIONS, RECORDS, page
from steptool.records import (
    FINISH,
    Cost,
    Evaluation,
    Query,
    Step,
    StepReward,
    StepStatus,
    StopReason,
    ToolCall,
    Trajectory,
)
from steptool.records.columns import get_contract, get_schema
from steptool.records.tables import write_records

OK, FAILED = Step(ToolCall("look", {}), StepStatus.OK, "1"), Step(ToolCall("book", {}), StepStatus.TOOL_ERROR, "no")
END = Step(ToolCall(FINISH, {}), StepStatus.FINISH, "")


def test_the_page_is_what_the_records_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs-artifacts"
    assert all(f"| {name} |" in page() for cls in RECORDS for name in get_schema(cls).names)


def test_the_changelog_names_every_contract_with_its_version() -> None:
    text = Path(__file__).parents[2].joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    contracts = text.partition("### Contracts\n")[2].partition("\n#")[0]
    versions = {name: int(version) for name, version in re.findall(r"`(\w+)` (\d+)", contracts)}
    assert versions == {get_contract(cls).name: get_contract(cls).version for cls in RECORDS}


def episode(name: str, query: str, steps: list[Step], solved: float | None, round_index: int = -1) -> Trajectory:
    return Trajectory(
        name, query, "desk", "short", "p", round_index, 0, 1.0, [], np.zeros(0, np.int32), [],
        np.zeros(0, np.float32), steps, StopReason.FINISHED, "7", solved, 0.5,
    )  # fmt: skip


def evaluation(query: str, model: str, passed: float) -> Evaluation:
    fields: dict[str, Any] = dict.fromkeys(get_schema(Evaluation).names, 0)
    texts = {
        "query_id": query,
        "model": model,
        "trajectory_id": f"{model}/{query}",
        "passed": passed,
        "tier": "short" if query != "q3" else "long",
        "split": "heldout",
        "decoding": "greedy",
    }
    other = {name: "" for name in fields if get_schema(Evaluation).field(name).type == "string"}
    return Evaluation(**{**fields, **other, **texts})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    queries = [Query(f"q{n}", "heldout", "desk", f"task {n}", ()) for n in (1, 2, 3)]
    passed = {"warm_start": (1.0, 0.0, 1.0), "steptool": (1.0, 1.0, 0.0)}
    rows = [evaluation(f"q{n + 1}", model, p) for model, own in passed.items() for n, p in enumerate(own)]
    after = [episode(f"steptool/q{n}", f"q{n}", [OK, FAILED, END], 1.0) for n in (1, 2, 3)]
    rounds = [
        [episode("a", "q1", [OK, OK, END], 1.0, 0), episode("b", "q2", [FAILED, END], 0.0, 0)],
        [episode("c", "q1", [OK, FAILED, END], None, 1)],
    ]
    write_records(folder / "queries.parquet", queries, Query)
    write_records(folder / "evaluations.parquet", rows, Evaluation)
    write_records(folder / "evaluation_trajectories_steptool_greedy.parquet", after, Trajectory)
    for number, episodes in enumerate(rounds):
        write_records(folder / f"trajectories_round_{number:02d}.parquet", episodes, Trajectory)
        scores = [
            StepReward(t.trajectory_id, i, "rules", "1", contribution=None if s is END else float(s is OK))
            for t in episodes
            for i, s in enumerate(t.steps)
        ]
        write_records(folder / f"rewards_round_{number:02d}.parquet", scores, StepReward)
    costs = [Cost("ingest", seconds=9.0), Cost("rollout", 0, 2.0, 10, 50.0), Cost("rollout", 1, 1.5, 5, 60.0)]
    write_records(folder / "costs.parquet", [*costs, Cost("ppo", 0, 4.0, 8, 70.0)], Cost)
    return folder


ANSWERS = (
    [
        ("warm_start", "long", 1, 1.0), ("steptool", "long", 1, 0.0),
        ("steptool", "short", 2, 1.0), ("warm_start", "short", 2, 0.5),
    ],
    [("task 3", "book")],
    [("book", 2, 1.0), ("look", 3, 0.0)],
    [(0, False, 0.0, 1), (0, True, 1.0, 2)],
    [("ppo", 4.0, 8, 70.0), ("rollout", 3.5, 15, 60.0)],
)  # fmt: skip


@pytest.mark.parametrize(("question", "answer"), zip(QUESTIONS, ANSWERS, strict=True), ids=lambda x: "")
def test_a_question_in_sql_has_its_answer(
    question: Any, answer: list[Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    rows = duckdb.sql(question.sql).fetchall()
    assert rows == answer
