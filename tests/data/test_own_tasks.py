import gzip
import json

import pytest

from steptool.chat.messages import FINISH_SCHEMA, reads_only
from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.data.parsing import IngestError, IngestLog
from steptool.data.sources import OwnTasksSource, SourceInputs
from steptool.data.tools import ToolCatalog
from steptool.environments.desk.environment import DeskEnvironment
from steptool.records import Reference, ToolCall

TIDES = {
    "type": "function",
    "function": {
        "name": "tides",
        "description": "Tides of a harbour",
        "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}, "required": ["harbour"]},
    },
}


def named(name, **hints):
    return {"type": "function", "function": {**TIDES["function"], "name": name, **hints}}


TASK = {"instruction": "When is high water in Bristol? 🌊\nToday.", "tools": [TIDES]}

HARBOUR = f"""
from steptool.environments.base import Environment


class Harbour(Environment):
    name, read_only = "harbour", frozenset({{"tides", "sail"}})

    def reset(self, query):
        raise NotImplementedError

    def tools(self):
        return {[TIDES, named("close")]!r}
"""


def read_tasks(paths, **sections):
    config = Config.model_validate(sections | {"data": {"paths": paths} | sections.get("data", {})})
    return list(OwnTasksSource().read_queries(SourceInputs(config, ToolCatalog(config), IngestLog())))


@pytest.fixture
def tasks(tmp_path):
    def write(*lines):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "tasks.jsonl").write_text(text, encoding="utf-8")
        return [str(tmp_path / "tasks.jsonl")]

    return write


def test_a_task_needs_an_instruction_and_tools_only(tasks):
    first, second = read_tasks(tasks("", TASK, "  ", TASK, ""))
    assert (first.query_id, second.query_id) == ("tasks-2", "tasks-4")
    assert first.instruction == TASK["instruction"] and first.tools == (TIDES, FINISH_SCHEMA)
    assert (first.split, first.tier, first.max_steps, first.reference) == ("", "", 0, Reference())


def test_what_a_task_says_is_kept(tasks):
    reference = {"answer": "at nine", "calls": [{"name": "tides", "arguments": {}}], "tools": ["tides"], "note": 1}
    task = {"id": "t1", "split": "heldout", "tier": "easy", "max_steps": 4, "reference": reference}
    (query,) = read_tasks(tasks(TASK | task))
    assert (query.query_id, query.split, query.tier, query.max_steps) == ("t1", "heldout", "easy", 4)
    assert query.reference == Reference("at nine", (ToolCall("tides", {}),), tools=("tides",), environment={"note": 1})


def test_a_finish_of_their_own_is_replaced(tasks):
    finish = {"type": "function", "function": {"name": "Finish", "description": "", "parameters": {"type": "object"}}}
    (query,) = read_tasks(tasks(TASK | {"tools": [finish, TIDES]}))
    assert query.tools == (TIDES, FINISH_SCHEMA)


def test_tools_may_be_those_of_the_environment(tasks):
    tools = DeskEnvironment().tools()
    task = {"instruction": "Who is mira chen?", "environment": "desk", "reference": {"tools": ["find_user"]}}
    (query,) = read_tasks(tasks(task))
    assert query.environment == "desk" and query.tools == (*tools, FINISH_SCHEMA)
    (query,) = read_tasks(tasks({"instruction": "Who?"}), data={"environment": "desk"})
    assert query.environment == "desk" and query.tools == (*tools, FINISH_SCHEMA)
    (query,) = read_tasks(tasks(TASK | {"environment": "mcp"}), data={"environment": "desk"})
    assert query.environment == "mcp" and query.tools == (TIDES, FINISH_SCHEMA)
    (query,) = read_tasks(tasks(TASK))
    assert query.environment == "replay"


def test_an_environment_says_which_tools_only_read(tasks, tmp_path):
    """Its names hold for its own tools and for those of a task; what a tool says of itself goes first."""
    (tmp_path / "harbour.py").write_text(HARBOUR)
    own = {"instruction": "When?", "tools": [TIDES, named("close"), named("sail", **{"x-read-only": False})]}
    place = f"{tmp_path}/harbour.py:Harbour"
    listed, bare = read_tasks(tasks(own, {"instruction": "When?"}), data={"environment": place})
    hints = [{tool["function"]["name"]: reads_only(tool) for tool in query.tools} for query in (listed, bare)]
    assert hints == [
        {"tides": True, "close": None, "sail": False, "Finish": None},
        {"tides": True, "close": None, "Finish": None},
    ]


def test_an_environment_that_is_not_set_up_is_refused(tasks):
    with pytest.raises(ConfigError, match=r"tools\.mcp"):
        read_tasks(tasks({"instruction": "Who?", "environment": "mcp"}))


def test_a_default_environment_that_is_not_known_is_refused(tasks):
    with pytest.raises(ConfigError, match=r"'data\.environment': expected one of .*replay.*, got 'moon'"):
        read_tasks(tasks(TASK), data={"environment": "moon"})


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ({"tools": [TIDES]}, "'instruction' is missing"),
        ({"instruction": "Tides?"}, "'tools' is missing, and the environment 'replay' has no tools of its own"),
        (TASK | {"environment": "moon"}, "'environment': expected one of"),
        (TASK | {"environment": 3}, "'environment'"),
        (TASK | {"environment": "sys:exit"}, "'environment': expected one of"),
        (TASK | {"environment": "os:abort"}, "'environment': expected one of"),
        (TASK | {"instruction": " "}, "'instruction'"),
        (TASK | {"tools": {}}, "'tools'"),
        (TASK | {"tools": [{"name": "tides"}]}, r"tools\[0\]\.type"),
        (TASK | {"tools": [TIDES, TIDES]}, r"tools\[1\]\.function\.name"),
        (TASK | {"tool": []}, "unknown field 'tool'"),
        (TASK | {"id": 3}, "'id'"),
        (TASK | {"split": "test"}, "'split': expected one of train, validation, heldout"),
        (TASK | {"max_steps": "4"}, "'max_steps'"),
        (TASK | {"max_steps": -1}, "'max_steps'"),
        (TASK | {"max_steps": 2**63}, r"'max_steps': expected a number of steps from 0 to 2147483647, got 92233720"),
        (TASK | {"reference": {"turns": [{}]}}, r"'reference\.turns\[0\]\.turn': expected list"),
        (TASK | {"reference": {"turns": [[{"name": "waves", "arguments": {}}]]}}, '"waves"'),
        (TASK | {"reference": {"family": 3}}, "'family'"),
        (TASK | {"max_steps": True}, "'max_steps'"),
        (TASK | {"reference": "at nine"}, "'reference'"),
        (TASK | {"reference": {"answer": 9}}, "'answer'"),
        (TASK | {"reference": {"calls": [{"name": "tides"}]}}, r"'reference\.calls\[0\]\.arguments' is missing"),
        (TASK | {"reference": {"tools": ["waves"]}}, '"waves"'),
        ("{", "Expecting"),
        ('"Tides?"', "expected a JSON object"),
    ],
)
def test_the_first_bad_task_is_named_with_file_line_and_field(tasks, task, named):
    with pytest.raises(IngestError, match=rf"tasks\.jsonl, line 2: .*{named}"):
        read_tasks(tasks(TASK, task))


def test_ids_are_distinct(tasks):
    with pytest.raises(IngestError, match=r"'id'.*t1"):
        read_tasks(tasks(TASK | {"id": "t1"}, TASK | {"id": "t1"}))


def test_files_of_one_name_may_leave_out_the_ids(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tasks.jsonl").write_text(json.dumps(TASK))
    assert len(read_tasks([str(tmp_path)])) == 2


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "tasks.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(IngestError, match=r"tasks\.jsonl, line 1: not UTF-8 text"):
        read_tasks([str(tmp_path)])


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    task = TASK | {"instruction": "one\u2028two\x85three"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task, ensure_ascii=False) + "\r\n", encoding="utf-8")
    (query,) = read_tasks([str(tmp_path)])
    assert query.instruction == "one\u2028two\x85three"


def test_compressed_files_beside_others_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(TASK))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write(json.dumps(TASK))
    assert [query.query_id for query in read_tasks([str(tmp_path)])] == ["a-1", "b-1"]


def test_a_schema_nested_too_deeply_is_refused_with_its_place(tasks):
    schema = '{"type": "object", "properties": {"a": ' * 200 + '{"type": "string"}' + "}}" * 200
    task = json.dumps(TASK | {"tools": [{**TIDES, "function": {**TIDES["function"], "parameters": "DEEP"}}]})
    with pytest.raises(IngestError, match=r"line 1: .*tools\[0\]\.function\.parameters: .* nested too deeply"):
        read_tasks(tasks(task.replace('"DEEP"', schema)))
