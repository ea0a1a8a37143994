import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steptool.chat.messages import FINISH_SCHEMA, NO_CALL, make_call_message, make_tool_message
from steptool.config import Config
from steptool.data.export import Form, PreferencePair, SftExample, export
from steptool.data.ingest import ingest
from steptool.data.recordings.recording import RecordedTurn, make_trajectory
from steptool.environments.toolbench import read_status
from steptool.records import FINISH, Query, Step, StepStatus, ToolCall, Trajectory
from steptool.records.columns import ContractError, to_row
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, write_records, write_rows

TIDES = {
    "type": "function",
    "function": {"name": "tides", "description": "Tides", "parameters": {"type": "object", "properties": {}}},
}
ANSWER = json.dumps({"return_type": "give_answer", "final_answer": "At nine. ☔"})


def query(number=0, tools=(TIDES, FINISH_SCHEMA)):
    return Query(f"q{number}", "train", "replay", f"When is high water {number}?", tools)


def demonstrate(task, sample=0, solved=None, answer=ANSWER):
    turns = [RecordedTurn("First.", "tides", '{"at": ["Bristol", 1]}', "9:12"), RecordedTurn("", FINISH, answer, None)]
    return make_trajectory(turns, solved, task, sample)


@pytest.fixture
def export_all(tmp_path):
    def make(form, trajectories, queries):
        inputs = (
            write_records(tmp_path / "t.parquet", trajectories, Trajectory),
            write_records(tmp_path / "q.parquet", queries, Query),
        )
        return export(*inputs, form, tmp_path / "out")

    return make


@pytest.mark.parametrize("form", [Form.MESSAGES, Form.SFT])
@pytest.mark.parametrize("messages", ["5", '[{"role": "assistant", "tool_calls": [{"function": 5}]}]'])
def test_messages_of_another_shape_are_refused(tmp_path, form, messages):
    rows = [{**to_row(demonstrate(query())), "messages": messages}]
    episodes = write_rows(tmp_path / "t.parquet", rows, Trajectory)
    queries = write_records(tmp_path / "q.parquet", [query()], Query)
    with pytest.raises(ContractError, match="column 'messages' cannot be read"):
        export(episodes, queries, form, tmp_path / "out")


def test_a_verdict_that_is_no_number_is_left_out_of_a_line(export_all):
    result = export_all(Form.MESSAGES, [demonstrate(query(), solved=float("nan"))], [query()])
    assert json.loads(result.path.read_text("utf-8"))["solved"] is None


def test_messages_are_those_of_openai(export_all):
    result = export_all(Form.MESSAGES, [demonstrate(query(), solved=1.0)], [query()])
    (line,) = [json.loads(line) for line in result.path.read_text("utf-8").splitlines()]
    assert result.path.name == "messages.jsonl" and result.counts == {"trajectories read": 1, "rows written": 1}
    assert {k: line[k] for k in ("id", "query_id", "solved", "tools")} == {
        "id": "q0-recorded-0", "query_id": "q0", "solved": 1.0, "tools": [TIDES, FINISH_SCHEMA],
    }  # fmt: skip
    user, call, answer, finish = line["messages"]
    assert user == {"role": "user", "content": "When is high water 0?"}
    assert call["content"] == "First." and call["tool_calls"] == [
        {"id": "call00000", "type": "function", "function": {"name": "tides", "arguments": '{"at": ["Bristol", 1]}'}}
    ]
    assert answer == {"role": "tool", "name": "tides", "content": "9:12", "tool_call_id": "call00000"}
    assert finish["tool_calls"][0]["id"] == "call00001"
    assert json.loads(finish["tool_calls"][0]["function"]["arguments"])["final_answer"] == "At nine. ☔"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WORDS = TEXT.filter(str.strip)
ARGUMENTS = st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.booleans(), max_size=2), max_size=3)
CALLED = st.builds(lambda a, o, t: (ToolCall("tides", a), t, read_status(o), o), ARGUMENTS, TEXT, TEXT)
MALFORMED = st.builds(lambda w, o: (None, w, StepStatus.MALFORMED, o), WORDS, TEXT)


@st.composite
def episodes(draw):
    """An episode as a rollout notes it: calls and malformed turns, and answers that the user goes on from."""
    messages, steps = [], []
    for number, (call, text, status, observation) in enumerate(draw(st.lists(CALLED | MALFORMED, max_size=4))):
        steps.append(Step(call, status, observation))
        messages += [make_call_message(call, text) if call else {"role": "assistant", "content": text}]
        messages += [make_tool_message(call.name if call else NO_CALL, observation)]
        if draw(st.booleans()):
            finish = ToolCall(FINISH, {"return_type": "give_answer", "final_answer": draw(TEXT)})
            steps.append(Step(finish, StepStatus.FINISH, ""))
            messages += [
                make_call_message(finish),
                make_tool_message(FINISH, ""),
                {"role": "user", "content": f"And {number}?"},
            ]
    if not steps or draw(st.booleans()):
        finish = ToolCall(FINISH, {"return_type": draw(st.sampled_from(["give_answer", "give_up_and_restart"]))})
        steps.append(Step(finish, StepStatus.FINISH, ""))
        messages.append(make_call_message(finish, draw(TEXT)))
    return messages, steps


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(episodes(), min_size=1, max_size=3))
def test_what_went_out_comes_in_again(tmp_path_factory, export_all, drafts):
    queries = [query(n) for n in range(len(drafts))]
    trajectories = [
        replace(demonstrate(task, solved=0.25), messages=[demonstrate(task).messages[0], *messages], steps=steps)
        for task, (messages, steps) in zip(queries, drafts, strict=True)
    ]
    lines = export_all(Form.MESSAGES, trajectories, queries).path
    config = Config.model_validate({"data": {"source": "recorded", "paths": [str(lines)]}})
    result = ingest(config, tmp_path_factory.mktemp("again"), for_training=False)
    again = read_records(result.demonstrations_path, Trajectory)
    back = {q.query_id: q for q in read_queries(result.queries_path)}
    assert [t.steps for t in again] == [t.steps for t in trajectories]
    assert [t.messages for t in again] == [t.messages for t in trajectories]
    assert [(back[t.query_id].instruction, back[t.query_id].tools) for t in again] == [
        (q.instruction, q.tools) for q in queries
    ]
    assert [t.solved for t in again] == [0.25] * len(again)


def test_data_for_fine_tuning_leaves_out_what_is_known_to_have_failed(export_all):
    trajectories = [demonstrate(query(), n, solved) for n, solved in enumerate([None, 0.0, 0.5, 1.0, 0.49])]
    result = export_all(Form.SFT, trajectories, [query()])
    rows = pq.read_table(result.path).to_pylist()
    assert [r["trajectory_id"] for r in rows] == ["q0-recorded-0", "q0-recorded-2", "q0-recorded-3"]
    assert result.counts == {"trajectories read": 5, "rows written": 3, "left out: unsolved": 2}
    assert json.loads(rows[0]["tools"]) == [TIDES, FINISH_SCHEMA]
    call = json.loads(rows[0]["messages"][1])["tool_calls"][0]
    assert call["function"]["arguments"] == {"at": ["Bristol", 1]}  # an object: chat templates write it themselves


def test_preferences_are_pairs_of_one_query(export_all):
    verdicts = {0: [1.0, 0.0, 1.0, None, 0.0, 1.0], 1: [0.0], 2: [0.5, 0.9, 0.1]}
    bad = json.dumps({"return_type": "give_up_and_restart"})
    trajectories = [
        demonstrate(query(n), sample, solved, ANSWER if solved else bad)
        for n, solves in verdicts.items()
        for sample, solved in enumerate(solves)
    ]
    trajectories.insert(0, trajectories.pop(4))  # the order of the file is not that of the queries
    result = export_all(Form.PREFERENCE, trajectories, [query(n) for n in verdicts])
    rows = pq.read_table(result.path).to_pylist()
    assert [(r["chosen_trajectory_id"], r["rejected_trajectory_id"]) for r in rows] == [
        ("q0-recorded-0", "q0-recorded-4"), ("q0-recorded-2", "q0-recorded-1"), ("q2-recorded-1", "q2-recorded-2"),
    ]  # fmt: skip
    assert result.counts == {
        "trajectories read": 10, "rows written": 3, "left out: no clear verdict": 2, "left out: no partner": 2,
    }  # fmt: skip
    first = {name: [json.loads(m) for m in rows[0][name]] for name in ("prompt", "chosen", "rejected")}
    assert first["prompt"] == [{"role": "user", "content": "When is high water 0?"}]
    assert [m["role"] for m in first["chosen"]] == ["assistant", "tool", "assistant"]
    assert "give_up" in json.dumps(first["rejected"][-1]) and "At nine" in json.dumps(first["chosen"][-1])


def test_pairs_are_formed_across_files(export_all, tmp_path):
    """Greedy and sampled episodes of the same queries: no file has a pair of its own."""
    files = [
        write_records(
            tmp_path / f"{name}.parquet", [demonstrate(query(n), 0, solved) for n, solved in verdicts], Trajectory
        )
        for name, verdicts in {
            "greedy": [(0, 1.0), (1, 0.0), (2, 1.0)],
            "sampled": [(0, 0.0), (1, 1.0), (2, 1.0)],
            "later": [(0, 1.0), (2, 0.0)],
        }.items()
    ]
    queries = write_records(tmp_path / "q.parquet", [query(n) for n in range(3)], Query)
    result = export(files, queries, Form.PREFERENCE, tmp_path / "out")
    rows = pq.read_table(result.path).to_pylist()
    assert [json.loads(row["prompt"][0])["content"][-2] for row in rows] == ["0", "2", "1"]
    assert result.counts == {"trajectories read": 8, "rows written": 3, "left out: no partner": 2}
    datasets = pytest.importorskip("datasets")
    assert len(datasets.Dataset.from_parquet(str(result.path), cache_dir=str(tmp_path / "cache"))) == 3


@pytest.mark.parametrize(
    ("form", "solved", "message"),
    [
        (
            Form.PREFERENCE,
            1.0,
            r"nothing to write as preference \(.*read 1, left out: no partner 1\); a pair",
        ),
        (Form.SFT, 0.0, r"nothing to write as sft \(trajectories read 1, left out: unsolved 1\)$"),
    ],
)
def test_an_empty_file_is_refused_with_its_counts(export_all, tmp_path, form, solved, message):
    with pytest.raises(ValueError, match=message):
        export_all(form, [demonstrate(query(), solved=solved)], [query()])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", Form)
def test_numbers_that_json_cannot_write_are_left_out(export_all, form, number):
    good = [demonstrate(query(), 0, 1.0), demonstrate(query(), 1, 0.0)]
    call = make_call_message(ToolCall("tides", {"at": [{"n": number}]}))
    bad = [replace(one, messages=[one.messages[0], call, *one.messages[2:]]) for one in good]
    result = export_all(form, [*bad, *good], [query()])
    assert result.counts["left out: a number that JSON cannot write"] == (1 if form is Form.SFT else 2)
    assert result.counts["rows written"] == (2 if form is Form.MESSAGES else 1)
    text = result.path.read_text() if form is Form.MESSAGES else str(pq.read_table(result.path).to_pylist())
    assert "NaN" not in text and "Infinity" not in text
    schema = {**TIDES["function"], "parameters": {"type": "object", "properties": {"n": {"default": number}}}}
    odd = replace(query(1), tools=({"type": "function", "function": schema},))
    with pytest.raises(ValueError, match="a number that JSON cannot write 1"):
        export_all(form, [demonstrate(odd, 0, 1.0)], [odd])


def test_partners_with_different_beginnings_are_no_pair(export_all):
    other = demonstrate(query(), 1, 0.0)
    other = replace(other, messages=[{"role": "user", "content": "Another day"}, *other.messages[1:]])
    same = demonstrate(query(1), 0, 1.0), demonstrate(query(1), 1, 0.0)
    result = export_all(Form.PREFERENCE, [demonstrate(query(), 0, 1.0), other, *same], [query(), query(1)])
    assert result.counts == {
        "trajectories read": 4, "rows written": 1, "left out: partners with different beginnings": 2,
    }  # fmt: skip


@pytest.mark.parametrize("form", Form)
def test_a_trajectory_of_another_query_is_refused_and_nothing_written(export_all, tmp_path, form):
    with pytest.raises(
        ValueError, match=r"'q7-recorded-0' answers the query 'q7', which is not in the file of queries"
    ):
        export_all(form, [demonstrate(query(0), solved=1.0), demonstrate(query(7), solved=1.0)], [query(0)])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_of_many_parts_is_one(export_all, tmp_path):
    trajectories = [demonstrate(query(n), solved=float(n % 2)) for n in range(3000)]
    result = export_all(Form.MESSAGES, trajectories, [query(n) for n in range(3000)])
    with Path(result.path).open(encoding="utf-8") as lines:
        assert [json.loads(line)["query_id"] for line in lines] == [f"q{n}" for n in range(3000)]


@pytest.mark.parametrize("form", Form)
def test_without_finish_among_the_tools_a_conversation_ends_in_text(export_all, form):
    task = query(tools=(TIDES,))
    result = export_all(form, [demonstrate(task, solved=1.0), demonstrate(task, 1, solved=0.0)], [task])
    if form is Form.MESSAGES:
        messages = json.loads(result.path.read_text("utf-8").splitlines()[0])["messages"]
    else:
        (row, *_) = read_records(result.path, SftExample if form is Form.SFT else PreferencePair)
        messages = [json.loads(text) for text in (row.messages if form is Form.SFT else row.chosen)]
    assert messages[-1] == {"role": "assistant", "content": "At nine. ☔"}
    assert messages[-2]["tool_call_id"] == messages[-3]["tool_calls"][0]["id"] == "call00000"
