import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.environments.base import open_environment
from steptool.environments.bfcl import BfclEnvironment
from steptool.environments.bfcl_tasks import CATEGORIES, parse_call, read_bfcl_queries
from steptool.environments.schema import check_arguments, check_tools
from steptool.records import FINISH, Query, ToolCall
from steptool.records.episodes import read_queries
from steptool.records.tables import write_records

ROOT = Path(__file__).parents[3]


def names(query: Query) -> list[str]:
    return [tool["function"]["name"] for tool in query.tools]


def test_there_are_200_tasks_in_each_category(queries: list[Query]) -> None:
    assert Counter(q.tier for q in queries) == dict.fromkeys(CATEGORIES, 200)
    assert len({q.query_id for q in queries}) == 800
    assert sum(len(q.reference.calls) for q in queries) == 4625
    assert {(q.split, q.environment, q.source) for q in queries} == {("", "bfcl", "bfcl")}


def test_the_tools_are_openai_schemas_with_finish_last(queries: list[Query]) -> None:
    for query in queries:
        check_tools(query.tools, query.query_id)
        assert names(query)[-1] == FINISH
    kinds = Counter(
        p["type"] for q in queries[:200] for t in q.tools for p in t["function"]["parameters"]["properties"].values()
    )
    assert set(kinds) == {"string", "number", "integer", "boolean", "array", "object"}


def test_a_task_has_a_message_for_each_turn_of_the_solution(by_id: dict[str, Query]) -> None:
    query = by_id["multi_turn_base_2"]
    assert query.instruction.startswith("Go into document folder")
    assert [m[:20] for m in query.reference.environment["bfcl"]["messages"]] == [
        "We've gathered a cou",
        "There seems to be so",
        "Simona thinks it's a",
        "Before Simona signs ",
    ]
    assert query.reference.turns[0] == (
        ToolCall("cd", {"folder": "documents"}),
        ToolCall("touch", {"file_name": "TeamNotes.txt"}),
    )
    assert [len(turn) for turn in query.reference.turns] == [2, 1, 1, 3, 1]
    assert query.max_steps == 5 * 21


def test_steps_suffice_for_the_longest_turn(queries: list[Query], by_id: dict[str, Query]) -> None:
    assert max(len(turn) for q in queries for turn in q.reference.turns) == 34
    assert by_id["multi_turn_long_context_46"].max_steps == 35
    for query in queries:
        assert len(query.reference.environment["bfcl"]["messages"]) == len(query.reference.turns) - 1


def test_tools_that_come_late_are_told_with_their_turn_and_not_before(queries: list[Query]) -> None:
    late = [q for q in queries if q.reference.environment["bfcl"]["later_tools"]]
    assert {q.tier for q in late} == {"miss_func"}
    assert len(late) == 200
    for query in late:
        ((turn, schemas),) = query.reference.environment["bfcl"]["later_tools"].items()
        held = {schema["function"]["name"] for schema in schemas}
        assert held
        assert not held & set(names(query))
        names_text, sentence = query.reference.environment["bfcl"]["messages"][int(turn) - 1].split("\n")
        assert json.loads(names_text) == schemas
        assert sentence == "I have updated some more functions you can choose from. What about now?"


def test_reference_calls_fit_their_schemas_but_for_one_and_its_variants(queries: list[Query]) -> None:
    broken = []
    for query in queries:
        later = [t for tools in query.reference.environment["bfcl"]["later_tools"].values() for t in tools]
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in (*query.tools, *later)}
        for call in query.reference.calls:
            if check_arguments(schemas[call.name], call.arguments):
                broken.append((query.query_id, call))
    assert [query_id for query_id, _ in broken] == [f"multi_turn_{category}_173" for category in CATEGORIES]
    assert all(call == ToolCall("close_ticket", {"ticket_id": "ticket_001"}) for _, call in broken)


def test_variants_of_a_task_are_one_family(queries: list[Query]) -> None:
    families: dict[str, set[str]] = {}
    for query in queries:
        families.setdefault(query.query_id.rpartition("_")[2], set()).add(query.reference.family)
    assert len(families) == 200
    assert all(len(texts) == 1 for texts in families.values())


def test_tasks_survive_the_file(queries: list[Query], tmp_path: Path) -> None:
    assert read_queries(write_records(tmp_path / "queries.parquet", queries, Query)) == queries


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("mv('a.txt', 'b.txt')", {"source": "a.txt", "destination": "b.txt"}),
        ("mv('a.txt', destination='b.txt')", {"source": "a.txt", "destination": "b.txt"}),
        ("mean(numbers=[1, -2.5])", {"numbers": [1, -2.5]}),
        ("ls()", {}),
    ],
)
def test_calls_are_read_as_python_writes_them(text: str, arguments: dict[str, object]) -> None:
    call = parse_call(text, ["GorillaFileSystem", "MathAPI"])
    assert call == ToolCall(text.partition("(")[0], arguments)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "text",
    [
        "cd(folder=__import__('os').getcwd())",
        "cd(folder=pwd())",
        "os.system('true')",
        "cd(**{'folder': 'a'})",
        "cd('a', 'b')",
        "_load_scenario({})",
        "add(a=1, b=2)",
        "1 + 1",
        "cd(folder='a'); 1",
    ],
)
def test_nothing_but_a_call_with_literals_is_read(text: str) -> None:
    with pytest.raises(ValueError):
        parse_call(text, ["GorillaFileSystem"])


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    for attempt in (read_bfcl_queries, BfclEnvironment, lambda: open_environment("bfcl", Config())):
        with pytest.raises(ConfigError, match="bfcl-eval, which is not installed: run `make bfcl`"):
            attempt()


def test_the_benchmark_is_left_out_where_the_package_is_missing() -> None:
    program = "import runpy, sys; sys.modules['bfcl_eval'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    path = str(ROOT / "benchmarks" / "bfcl.py")
    process = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert process.stdout.startswith("bfcl: left out. ")
    assert process.stdout.count("\n") == 1


@pytest.mark.usefixtures("environment")
def test_the_environment_is_known_by_name() -> None:
    environment = open_environment("bfcl", Config())
    assert isinstance(environment, BfclEnvironment)
    check_tools(list(environment.tools()), "bfcl")
    assert len(environment.tools()) == 128
