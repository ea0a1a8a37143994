import copy
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from full_disk import stop_files_at
from steptool.config import Config, load_config
from steptool.data.ingest import ingest
from steptool.data.parsing import IngestError, IngestLog, Record, UnusableError
from steptool.data.splits import SPLITS, make_text_key
from steptool.environments.base import ToolResult
from steptool.environments.replay import ReplayEnvironment
from steptool.records import Query, StepStatus, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records


@pytest.fixture
def many(tmp_path, write_json, instruction):
    """A folder of 60 instructions with texts of their own."""
    records = [{**copy.deepcopy(instruction), "query": f"Question {n}?", "query_id": n} for n in range(60)]
    write_json(tmp_path / "in" / "G9_weather.json", records)
    return tmp_path / "in"


def test_queries_and_demonstrations_are_written_under_their_contracts(
    tmp_path, many, configured, write_json, tree_answer, chain_answer
):
    tree_answer["answer_generation"]["query"] = " Question 7?\n"
    write_json(tmp_path / "rec" / "7.json", tree_answer)
    write_json(tmp_path / "rec" / "8.json", chain_answer)
    result = ingest(configured("toolbench", [many], [tmp_path / "rec"]), tmp_path / "out")
    queries = {q.query_id: q for q in read_queries(result.queries_path)}
    matched, carried = read_records(result.demonstrations_path, Trajectory)
    assert len(queries) == 61 and matched.query_id == "G9_weather-7" and carried.query_id == "rec-8"
    assert queries["rec-8"].instruction == chain_answer["answer_generation"]["query"]
    assert matched.messages[0]["content"] == queries["G9_weather-7"].instruction
    assert result.counts == {
        "queries read": 61, "queries kept": 61, "demonstrations read": 2, "demonstrations kept": 2,
    }  # fmt: skip
    assert result.quarantine_path.read_text() == ""


def test_every_demonstration_can_be_replayed(tmp_path, many, configured, write_json, tree_answer):
    write_json(tmp_path / "rec" / "7.json", tree_answer)
    result = ingest(configured("toolbench", [many], [tmp_path / "rec"]), tmp_path / "out")
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    by_id = {q.query_id: q for q in read_queries(result.queries_path)}
    environment = ReplayEnvironment(demonstrations)
    for trajectory in demonstrations:
        session = environment.reset(by_id[trajectory.query_id])
        for step in trajectory.steps:
            if step.status is not StepStatus.FINISH:
                assert session.call(step.call) == ToolResult(step.status, step.observation)


def test_several_answers_to_a_query_are_its_samples(tmp_path, many, configured, write_json, tree_answer, chain_answer):
    write_json(tmp_path / "rec" / "a.json", tree_answer)
    write_json(tmp_path / "rec" / "b.json", chain_answer)
    result = ingest(configured("toolbench", [many], [tmp_path / "rec"]), tmp_path / "out")
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert [(d.query_id, d.sample) for d in demonstrations] == [("rec-a", 0), ("rec-a", 1)]
    assert len({d.trajectory_id for d in demonstrations}) == 2


def test_ids_of_files_of_one_name_stay_apart(tmp_path, many, configured, write_json, instruction):
    write_json(tmp_path / "more" / "G9_weather.json", [{**instruction, "query": "Another?", "query_id": 7}])
    result = ingest(configured("toolbench", [many, tmp_path / "more"]), tmp_path / "out")
    ids = [q.query_id for q in read_queries(result.queries_path)]
    assert len(set(ids)) == 61 and "G9_weather-7~2" in ids


def test_many_queries_of_one_number_stay_apart(tmp_path, configured, write_json, instruction):
    records = [{**instruction, "query": f"Question {n}?"} for n in range(3000)]
    write_json(tmp_path / "in" / "G9.json", [*records, {**instruction, "query": "Once more?", "query_id": "7~5"}])
    result = ingest(
        configured("toolbench", [tmp_path / "in"], train=9999, validation=9999, heldout=9999), tmp_path / "out"
    )
    ids = [q.query_id for q in read_queries(result.queries_path)]
    assert ids == ["G9-7", *(f"G9-7~{n}" for n in range(2, 3001)), "G9-7~5~2"]


def test_what_is_dropped_is_counted_and_quarantined(tmp_path, many, configured, write_json):
    write_json(many / "bad.json", [{"query": "No tools"}, {"api_list": []}])
    (many / "notes.json").write_text("not json")
    result = ingest(configured("toolbench", [many], train=5, validation=3, heldout=2), tmp_path / "out")
    assert Counter(q.split for q in read_queries(result.queries_path)) == {"train": 5, "validation": 3, "heldout": 2}
    lines = [json.loads(line) for line in result.quarantine_path.read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [
        (0, "missing field 'api_list'"), (1, "missing field 'query'"), (None, "not JSON"),
    ]  # fmt: skip
    over = sum(n for reason, n in result.counts.items() if "more than data." in reason)
    assert result.counts["queries read"] == 62 and over == 50
    assert result.counts["queries kept"] == 10


def test_a_full_disk_leaves_the_records_set_aside_that_were_there(tmp_path):
    log = IngestLog()
    fault = UnusableError("not JSON", "an end that is missing")
    log.refuse("queries", Record(Path("a.jsonl"), 1, "{"), fault)
    before = log.write(tmp_path / "quarantine.jsonl").read_text()
    log.refuse("queries", Record(Path("a.jsonl"), 2, "{"), fault)
    with stop_files_at(len(before) + 10), pytest.raises(OSError, match="File too large"):
        log.write(tmp_path / "quarantine.jsonl")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"quarantine.jsonl": before}


def test_a_second_run_writes_the_same(tmp_path, many, configured):
    config = configured("toolbench", [many], train=9, validation=6, heldout=6)
    one, two = ingest(config, tmp_path / "one"), ingest(config, tmp_path / "two")
    assert read_queries(one.queries_path) == read_queries(two.queries_path)


def test_an_empty_split_is_refused_and_counts_and_quarantine_are_written(tmp_path, configured, write_json, instruction):
    write_json(tmp_path / "in" / "G9.json", [instruction, {"query": "No tools"}])
    message = r"the split '\w+' is empty .*queries: 2 read, 1 dropped: missing field 'api_list', 1 kept.*row 1: missing"
    with pytest.raises(IngestError, match=message):
        ingest(configured("toolbench", [tmp_path / "in"]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["counts.json", "quarantine.jsonl"]
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["queries read"] == 2
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["row"] == 1


def test_where_everything_is_dropped_the_reason_comes_first(tmp_path, configured):
    row = conversation(1)
    del row["messages"][2:]
    (tmp_path / "logs.jsonl").write_text(json.dumps(row))
    settings = configured("recorded", [tmp_path / "logs.jsonl"])
    expected = {"demonstrations read": 1, "demonstrations dropped: a call without a response": 1, "queries kept": 0}
    message = r"logs\.jsonl: demonstrations: 1 read, 1 dropped: a call without a response; .*No query is left$"
    for for_training in (True, False):
        with pytest.raises(IngestError, match=message) as refusal:
            ingest(settings, tmp_path / "out", for_training=for_training)
        assert "proportions" not in str(refusal.value)
        assert json.loads((tmp_path / "out" / "counts.json").read_text()) == expected
        assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["record"] == row
    result = ingest(settings, tmp_path / "out", for_training=False, may_be_empty=True)
    assert read_records(result.queries_path, Query) == [] and result.counts == expected


def test_a_source_of_files_needs_paths(tmp_path):
    config = Config.model_validate({"data": {"source": "jsonl"}})
    with pytest.raises(IngestError, match=r"data\.paths"):
        ingest(config, tmp_path)


def test_own_tasks_keep_their_splits(tmp_path, configured):
    tool = {"type": "function", "function": {"name": "t", "description": "", "parameters": {"type": "object"}}}
    tasks = [{"instruction": f"Do {s}", "tools": [tool], "split": s, "id": s} for s in SPLITS]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    result = ingest(configured("jsonl", [tmp_path / "tasks.jsonl"]), tmp_path / "out")
    assert {q.query_id: q.split for q in read_queries(result.queries_path)} == {s: s for s in SPLITS}
    assert read_records(result.demonstrations_path, Trajectory) == []


def conversation(number, **fields):
    call = {"id": "c1", "type": "function", "function": {"name": "t", "arguments": json.dumps({"n": number})}}
    messages = [
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": f"{number} is the answer"},
        {"role": "assistant", "content": f"It is {number}."},
    ]
    tool = {"name": "t", "description": "", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    return {"messages": messages, "tools": [{"type": "function", "function": tool}]} | fields


def test_recordings_bring_their_own_tasks(tmp_path, configured):
    rows = [conversation(n % 40) for n in range(60)]
    (tmp_path / "logs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{")
    result = ingest(configured("recorded", [tmp_path]), tmp_path / "out")
    assert result.counts == {
        "queries read": 40, "queries kept": 40, "demonstrations read": 61, "demonstrations kept": 60,
        "demonstrations dropped: not JSON": 1,
    }  # fmt: skip
    assert json.loads(result.counts_path.read_text()) == result.counts
    queries = {q.query_id: q.instruction for q in read_queries(result.queries_path)}
    for n, trajectory in enumerate(read_records(result.demonstrations_path, Trajectory)):
        assert trajectory.sample == n // 40 and queries[trajectory.query_id] == f"Question {n % 40}?"
        assert trajectory.steps[0].observation == f"{n % 40} is the answer"
        assert trajectory.final_answer == f"It is {n % 40}."


def test_dirty_text_passes_unharmed(tmp_path, configured):
    text = "NUL \x00, tab \t, \u2028, \U0001f600, 'quotes\", \\udead"
    row = conversation(1)
    row["messages"][0]["content"] = row["messages"][2]["content"] = text
    (tmp_path / "logs.jsonl").write_text(json.dumps(row))
    result = ingest(configured("recorded", [tmp_path]), tmp_path / "out", for_training=False)
    (query,), (trajectory,) = read_queries(result.queries_path), read_records(result.demonstrations_path, Trajectory)
    assert query.instruction == trajectory.messages[0]["content"] == trajectory.steps[0].observation == text


def test_however_deep_a_record_is_nested_the_others_come_through(tmp_path, configured):
    with (tmp_path / "logs.jsonl").open("w") as lines:
        for depth in range(1, 1100, 3):
            row = conversation(depth)
            deep = '{"a": ' * depth + "1" + "}" * depth
            row["messages"][1]["tool_calls"][0]["function"]["arguments"] = "DEEP" if depth % 2 else deep
            row["tools"][0]["function"]["parameters"]["x"] = "DEEPER" if depth % 5 == 0 else 1
            lines.write(json.dumps(row).replace('"DEEP"', deep).replace('"DEEPER"', deep) + "\n")
    result = ingest(configured("recorded", [tmp_path]), tmp_path / "out", for_training=False)
    dropped = sum(number for name, number in result.counts.items() if name.startswith("demonstrations dropped"))
    assert result.counts["demonstrations read"] == 367 == dropped + result.counts["demonstrations kept"]
    assert result.counts["demonstrations kept"] > 200 and dropped > 20
    assert len(result.quarantine_path.read_text().splitlines()) == dropped


def test_the_same_conversations_in_any_container_are_the_same(tmp_path, configured):
    datasets = pytest.importorskip("datasets")
    rows = [conversation(n) for n in range(40)]
    for form in ("list", "lines", "parquet", "saved", "texts"):
        (tmp_path / form).mkdir()
    (tmp_path / "list" / "a.json").write_text(json.dumps(rows))
    (tmp_path / "lines" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved" / "d")
    texts = [{name: json.dumps(value) for name, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "texts" / "a.parquet")
    contents = []
    for form in ("list", "lines", "parquet", "saved", "texts"):
        result = ingest(configured("recorded", [tmp_path / form]), tmp_path / "out" / form)
        assert result.counts["demonstrations kept"] == 40
        queries = {q.query_id: (q.instruction, q.split, q.tools) for q in read_queries(result.queries_path)}
        contents.append([(queries[t.query_id], t.steps) for t in read_records(result.demonstrations_path, Trajectory)])
    assert all(one == contents[0] for one in contents)


def test_an_environment_answers_the_tasks_of_files(tmp_path, many, configured, write_json, chain_answer):
    write_json(tmp_path / "rec" / "8.json", chain_answer)
    config = configured("toolbench", [many], [tmp_path / "rec"], environment="toolbench")
    result = ingest(config, tmp_path / "out")
    assert {q.environment for q in read_queries(result.queries_path)} == {"toolbench"}
    assert {t.environment for t in read_records(result.demonstrations_path, Trajectory)} == {"toolbench"}


def test_conversations_without_tools_take_those_of_the_environment(tmp_path, configured):
    rows = [conversation(n, tools=None) for n in range(40)]
    (tmp_path / "logs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = ingest(configured("recorded", [tmp_path], environment="desk"), tmp_path / "out")
    assert len(read_queries(result.queries_path)[0].tools) > 10
    with pytest.raises(IngestError, match=r"row 1: missing field 'tools': .* 'replay' has no tools of its own"):
        ingest(configured("recorded", [tmp_path / "logs.jsonl"]), tmp_path / "none")


def test_the_tasks_of_bfcl_are_split_by_family(tmp_path):
    pytest.importorskip("bfcl_eval", reason="BFCL's tools are not installed: make bfcl")
    result = ingest(Config.model_validate({"data": {"source": "bfcl"}}), tmp_path / "out")
    queries = read_queries(result.queries_path)
    assert result.counts["queries read"] == len(queries) == 800 and {q.environment for q in queries} == {"bfcl"}
    families = {q.reference.family: q.split for q in queries}
    assert len(families) <= 200 and all(families[q.reference.family] == q.split for q in queries)


def test_without_training_a_split_may_stay_empty(tmp_path, configured, write_json, instruction):
    write_json(tmp_path / "in" / "G9.json", [instruction])
    result = ingest(configured("toolbench", [tmp_path / "in"]), tmp_path / "out", for_training=False)
    assert len(read_queries(result.queries_path)) == 1
    write_json(tmp_path / "empty" / "G9.json", [])
    with pytest.raises(IngestError, match=r"empty: queries: 0 kept\. No query is left"):
        ingest(configured("toolbench", [tmp_path / "empty"]), tmp_path / "none", for_training=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in", "none", "out"]  # nothing temporary is left


def test_the_desk_comes_with_queries_and_demonstrations(tmp_path):
    sizes = {"train_queries": 6, "validation_queries": 4, "heldout_queries": 4}
    config = Config.model_validate({"data": sizes, "warm_start": {"demonstrations": 5}})
    result = ingest(config, tmp_path)
    queries = read_queries(result.queries_path)
    assert Counter(q.split for q in queries) == {"train": 6, "validation": 4, "heldout": 4}
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert demonstrations and {d.query_id for d in demonstrations} <= {q.query_id for q in queries}


def test_real_data_as_a_whole(tmp_path, real_data, configured):
    paths = [
        real_data / "stabletoolbench/solvable_queries/test_instruction",
        real_data / "toolbench/data_example/instruction",
    ]
    recorded = [real_data / "stabletoolbench/data_example/answer", real_data / "toolbench/data_example/answer"]
    result = ingest(configured("toolbench", paths, recorded), tmp_path)
    queries = read_queries(result.queries_path)
    assert Counter(q.source for q in queries) == {"toolbench": 775, "recorded": 10}
    assert len({q.query_id for q in queries}) == len(queries)
    splits = {}
    for q in queries:
        assert splits.setdefault(make_text_key(q.instruction), q.split) == q.split
    assert len(read_records(result.demonstrations_path, Trajectory)) == 13
    aside = [json.loads(line) for line in result.quarantine_path.read_text("utf-8").splitlines()]
    # two demonstrations of ToolBench's command line, which name APIs without describing them
    assert sorted(a["file"].rsplit("/", 1)[1] for a in aside) == [
        "inference_query_demo.json", "inference_query_demo_open_domain.json",
    ]  # fmt: skip


def test_the_configuration_for_real_data_keeps_every_answer(tmp_path, real_data):
    config = load_config(Path(__file__).parents[2] / "configs" / "toolbench.yaml")

    def move_paths(paths):
        return [p.replace("data", str(real_data), 1) for p in paths]

    there = {"paths": move_paths(config.data.paths), "recorded_answers": move_paths(config.data.recorded_answers)}
    config = config.model_copy(update={"data": config.data.model_copy(update=there)})
    result = ingest(config, tmp_path)
    assert result.counts["queries kept"] == 40 and result.counts["demonstrations kept"] == 13
    train = {q.query_id for q in read_queries(result.queries_path, "train")}
    assert sum(d.query_id in train for d in read_records(result.demonstrations_path, Trajectory)) >= 6
