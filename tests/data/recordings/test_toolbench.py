import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quarantine import read_quarantine
from steptool.chat.messages import FINISH_SCHEMA
from steptool.data.parsing import IngestLog, Record, UnusableError
from steptool.data.recordings.forms import read_recording, read_recordings
from steptool.data.recordings.recording import make_query, make_trajectory
from steptool.environments.schema import check_arguments, check_tools
from steptool.records import FINISH, StepStatus, StopReason, Trajectory
from steptool.records.tables import read_records, write_records

FILE = Path("G9_answer") / "7_model.json"


def no_tools():
    raise UnusableError("missing field 'tools'", "there are none")


def recording_of(document):
    return read_recording(Record(FILE, None, document), no_tools)


def trajectory_of(document):
    answer = recording_of(document)
    return make_trajectory(answer.turns, answer.solved, make_query(answer), 0)


TRIVIAL = {"answer_generation": {"query": "Rain?", "function": []}}


def finish_nodes(arguments):
    action = {"node_type": "Action", "description": FINISH}
    return [action, {"node_type": "Action Input", "description": arguments, "observation": ""}]


def statuses(trajectory):
    return [str(s.status) for s in trajectory.steps]


def path_of(document):
    return document["answer_generation"]["train_messages"][-1]


def test_the_last_training_messages_are_the_path(tree_answer):
    trajectory = trajectory_of(tree_answer)
    assert statuses(trajectory) == ["tool_error", "ok", "finish"]
    assert [s.call.name for s in trajectory.steps] == ["warnings_for_sky_watch", "forecast_day_for_sky_watch", FINISH]
    assert trajectory.steps[1].call.arguments == {"town": "Bern"}
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.final_answer == "It rains."
    assert (trajectory.policy, trajectory.solved, trajectory.action_tokens) == ("recorded", None, 0)


def test_messages_are_one_call_a_turn_with_the_thoughts_before_it(tree_answer):
    messages = trajectory_of(tree_answer).messages
    roles = [m["role"] for m in messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert messages[0]["content"] == tree_answer["answer_generation"]["query"]
    assert [messages[n]["content"] for n in (1, 3, 5)] == ["First the warnings.", "Then the forecast.", ""]
    assert messages[3]["tool_calls"] == [
        {"type": "function", "function": {"name": "forecast_day_for_sky_watch", "arguments": {"town": "Bern"}}}
    ]


def test_dirty_responses_pass_unharmed(tmp_path, tree_answer):
    raw = path_of(tree_answer)[7]["content"] + '\r\n\t\x07 \u2028 \U0001f600 {"a": "{\\"b\\": null}"} <|im_end|>'
    path_of(tree_answer)[7]["content"] = raw
    trajectory = trajectory_of(tree_answer)
    (back,) = read_records(write_records(tmp_path / "t.parquet", [trajectory], Trajectory), Trajectory)
    assert back.steps[1].observation == raw == back.messages[4]["content"]
    assert back.messages == list(trajectory.messages) and back.steps == list(trajectory.steps)


def test_a_chain_without_training_messages_is_its_last_try(chain_answer):
    trajectory = trajectory_of(chain_answer)
    assert statuses(trajectory) == ["tool_error", "ok"]
    assert trajectory.stop_reason is StopReason.STEP_LIMIT and trajectory.final_answer is None
    assert trajectory.messages[3]["content"] == "Again."


def test_a_lost_tree_is_the_path_that_got_furthest(tree_answer):
    def branch(code, *children, text="{}", name="warnings_for_sky_watch"):
        leaf = {"node_type": "Action Input", "description": text, "observation": "{}", "observation_code": code}
        return {"node_type": "Action", "description": name, "children": [{**leaf, "children": list(children)}]}

    give_up = branch(4, text='{"return_type": "give_up_and_restart"}', name=FINISH)
    first, second = branch(0, give_up, text='{"n": 1}'), branch(0, give_up, text='{"n": 2}')
    root = {"node_type": "Action Input", "description": "", "children": [first, second, branch(0)]}
    tree_answer["tree"]["tree"] = root
    del tree_answer["answer_generation"]["train_messages"]
    trajectory = trajectory_of(tree_answer)
    assert statuses(trajectory) == ["ok", "finish"] and trajectory.steps[0].call.arguments == {"n": 2}
    assert trajectory.stop_reason is StopReason.GAVE_UP and trajectory.final_answer is None


def test_calls_in_the_newer_form_read_alike(tree_answer):
    older = trajectory_of(copy.deepcopy(tree_answer))
    for message in path_of(tree_answer):
        if call := message.pop("function_call", None):
            message["tool_calls"] = [{"id": "c1", "type": "function", "function": call}]
        if message["role"] == "function":
            message["role"] = "tool"
    newer = trajectory_of(tree_answer)
    assert (newer.messages, newer.steps) == (older.messages, older.steps)


@pytest.mark.parametrize("arguments", ['{"town": "Bern', "Bern", "[1]", "true"])
def test_arguments_that_are_no_object_are_a_malformed_step(tree_answer, arguments):
    path_of(tree_answer)[6]["function_call"]["arguments"] = arguments
    trajectory = trajectory_of(tree_answer)
    assert statuses(trajectory) == ["tool_error", "malformed", "finish"]
    assert trajectory.steps[1].call is None and trajectory.steps[1].observation == trajectory.messages[4]["content"]
    assert arguments in trajectory.messages[3]["content"] and "tool_calls" not in trajectory.messages[3]


def test_words_without_a_call_at_the_end_are_a_malformed_step(tree_answer):
    path_of(tree_answer)[-1:] = [{"role": "assistant", "content": "It will rain."}]
    trajectory = trajectory_of(tree_answer)
    assert statuses(trajectory)[-1] == "malformed" and trajectory.stop_reason is StopReason.MALFORMED
    assert trajectory.messages[-1] == {"role": "assistant", "content": "It will rain."}


def test_a_finish_of_another_form_does_not_finish(tree_answer):
    path_of(tree_answer)[-1]["function_call"]["arguments"] = '{"answer": "It rains."}'
    trajectory = trajectory_of(tree_answer)
    assert statuses(trajectory)[-1] == "invalid_arguments" and trajectory.final_answer is None


ARGUMENTS = st.dictionaries(
    st.sampled_from(["return_type", "final_answer", "answer"]),
    st.sampled_from(["give_answer", "give_up_and_restart", "give up"]) | st.none() | st.integers() | st.just([]),
)


@given(ARGUMENTS)
def test_a_finish_finishes_as_its_schema_says(arguments):
    answer = recording_of({**TRIVIAL, "trys": [{"chain": finish_nodes(json.dumps(arguments))}]})
    fits = check_arguments(FINISH_SCHEMA["function"]["parameters"], arguments) is None
    (step,) = make_trajectory(answer.turns, None, make_query(answer), 0).steps
    assert step.status is (StepStatus.FINISH if fits else StepStatus.INVALID_ARGUMENTS)


def test_nothing_comes_after_finish(tree_answer):
    path_of(tree_answer).append(path_of(tree_answer)[2])
    assert statuses(trajectory_of(tree_answer)) == ["tool_error", "ok", "finish"]


def test_the_tools_recorded_become_tool_schemas(tree_answer):
    functions = tree_answer["answer_generation"]["function"]
    functions[0]["parameters"]["properties"]["days"]["type"] = "NUMBER"
    functions[0]["parameters"]["required"] = ["town", "town", "gone"]
    tools = make_query(recording_of(tree_answer)).tools
    check_tools(tools, "tools")
    assert [t["function"]["name"] for t in tools] == ["forecast_day_for_sky_watch", "warnings_for_sky_watch", FINISH]
    parameters = tools[0]["function"]["parameters"]
    assert parameters["required"] == ["town"] and parameters["properties"]["town"]["examples"] == ["Bern"]
    assert parameters["properties"]["days"]["type"] == "number"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: d.pop("answer_generation"), "missing field 'answer_generation'"),
        (lambda d: d["answer_generation"].pop("query"), "missing field 'query'"),
        (lambda d: d["answer_generation"].pop("function"), "missing field 'function'"),
        (lambda d: d["answer_generation"].update(train_messages=[3]), "a path of another shape"),
        (lambda d: path_of(d).pop(3), "a call without a response"),
        (lambda d: path_of(d).pop(2), "a response without a call"),
        (lambda d: d["answer_generation"].update(train_messages=[]), "no recorded step"),
        (lambda d: d["answer_generation"]["function"][0].update(name="no name"), "tool schema that is no schema"),
    ],
)
def test_a_malformed_answer_is_set_aside_with_its_reason(tmp_path, write_json, tree_answer, spoil, reason):
    write_json(tmp_path / "a" / "good.json", tree_answer)
    spoil(tree_answer)
    bad = write_json(tmp_path / "b" / "bad.json", tree_answer)
    log = IngestLog()
    assert len(list(read_recordings([str(tmp_path)], "data.paths", no_tools, log))) == 1
    (aside,) = read_quarantine(log)
    assert (aside["file"], aside["reason"], aside["record"]) == (str(bad), reason, tree_answer)
    assert log.counts["demonstrations read"] == 1 and log.counts[f"demonstrations dropped: {reason}"] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(node, path=()):
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_damaged_an_answer_is_read_or_refused(tree_answer, chain_answer, converted_answers, data):
    document = copy.deepcopy(data.draw(st.sampled_from([tree_answer, chain_answer, converted_answers["17"]])))
    *parents, last = data.draw(st.sampled_from(sorted(places(document), key=repr)).filter(len))
    node = document
    for key in parents:
        node = node[key]
    node[last] = data.draw(JSON)
    try:
        trajectory = trajectory_of(document)
    except UnusableError as error:
        assert error.reason and error.detail
    else:
        assert trajectory.steps


def node(role, message, *following):
    return {"role": role, "message": message, "next": list(following)}


def tool_node(name, arguments, response, *following):
    return node("tool", {"name": name, "arguments": arguments, "response": response}, *following)


@pytest.fixture
def converted_answers():
    """Two answers in the form that is judged: a tree in which the first attempt gives up, and words without a call."""
    give_up = tool_node(FINISH, '{"return_type": "give_up_and_restart"}', "")
    answer = tool_node(FINISH, '{"return_type": "give_answer", "final_answer": "It rains."}', "")
    forecast = tool_node(
        "forecast", '{"town": "Bern"}', '{"error": "", "response": 9}', node("assistant", "So.", answer)
    )
    path = tool_node("warnings", "{}", '{"error": "Timeout error...", "response": ""}', give_up, forecast)
    tools = [{"name": n, "parameters": {"type": "object", "properties": {}}} for n in ("forecast", "warnings", FINISH)]
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    opening = node("system", "", node("user", "", path))
    return {
        "17": {"query": "Rain?", "available_tools": tools, "answer": {"answer_details": [opening]}},
        "18": {"query": "Snow?", "available_tools": wrapped, "answer": {"answer_details": [node("assistant", "No.")]}},
    }


def test_converted_answers_are_read_by_their_ids(tmp_path, write_json, converted_answers):
    log = IngestLog()
    write_json(tmp_path / "model" / "G1_tool.json", converted_answers)
    answers = list(read_recordings([str(tmp_path)], "data.paths", no_tools, log))
    queries = [make_query(answer) for answer in answers]
    assert [(q.query_id, q.tier, q.instruction) for q in queries] == [
        ("model-G1_tool-17", "G1_tool", "Rain?"), ("model-G1_tool-18", "G1_tool", "Snow?"),
    ]  # fmt: skip
    rain, snow = (make_trajectory(a.turns, None, q, 0) for a, q in zip(answers, queries, strict=True))
    assert statuses(rain) == ["tool_error", "ok", "finish"] and rain.final_answer == "It rains."
    assert rain.messages[-1]["content"] == "So."
    assert statuses(snow) == ["malformed"] and snow.messages[-1] == {"role": "assistant", "content": "No."}
    assert [t["function"]["name"] for t in queries[1].tools] == ["forecast", "warnings", FINISH]
    assert not log.counts and not read_quarantine(log)


def test_a_call_without_a_name_is_one_failed_step(tree_answer, chain_answer, converted_answers):
    path_of(tree_answer)[6]["function_call"]["name"] = ""
    path_of(tree_answer)[7]["name"] = ""
    assert statuses(trajectory_of(tree_answer)) == ["tool_error", "malformed", "finish"]
    chain_answer["trys"][-1]["chain"][3]["description"] = " "
    chain = trajectory_of(chain_answer)
    assert statuses(chain) == ["tool_error", "malformed"] and "9 mm" in chain.steps[1].observation
    for name in ("", None):
        details = converted_answers["17"]["answer"]["answer_details"]
        call = next(n for n in walk(details) if n["role"] == "tool")
        call["message"]["name"] = name
        trajectory = trajectory_of(converted_answers["17"])
        assert statuses(trajectory) == ["malformed", "ok", "finish"] and trajectory.final_answer == "It rains."


def walk(nodes):
    for node in nodes:
        yield node
        yield from walk(node.get("next") or [])


def test_a_call_that_was_converted_to_the_text_of_a_dict_is_read(converted_answers):
    expected = trajectory_of(converted_answers["17"])
    for node in walk(converted_answers["17"]["answer"]["answer_details"]):
        if node["role"] == "tool":
            node["message"] = str(node["message"])
    trajectory = trajectory_of(converted_answers["17"])
    assert (trajectory.steps, trajectory.messages) == (expected.steps, expected.messages)


@pytest.mark.parametrize(
    ("change", "reason", "named"),
    [
        (lambda text: text[:40], "a text that was cut off", "ends after 40 characters"),
        (lambda text: text[:40] + "...", "a text that was cut off", "ends after 43 characters"),
        (lambda text: "no call at all", "not a Python literal", "no call at all"),
        (lambda text: "[1, 2]", "not an object", "[1, 2]"),
    ],
)
def test_a_converted_call_that_cannot_be_read_says_why(converted_answers, change, reason, named):
    for node in walk(converted_answers["17"]["answer"]["answer_details"]):
        if node["role"] == "tool":
            node["message"] = change(str(node["message"]))
    with pytest.raises(UnusableError) as refusal:
        trajectory_of(converted_answers["17"])
    assert refusal.value.reason == reason and named in refusal.value.detail


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: d.pop("query"), "missing field 'query'"),
        (lambda d: d.pop("available_tools"), "missing field 'available_tools'"),
        (lambda d: d["answer"].update(answer_details=[]), "no recorded step"),
        (lambda d: d["answer"].update(answer_details=[node("tool", "words")]), "not a Python literal"),
        (lambda d: d["answer"].update(answer_details=[3]), "a path of another shape"),
        (lambda d: d["answer"].update(answer_details=[tool_node("a", "{}", None)]), "a call without a response"),
        (lambda d: d.update(answer=None), "ill-typed field 'answer'"),
        (lambda d: d.pop("answer"), "no known form of recording"),
    ],
)
def test_one_malformed_converted_answer_costs_that_one(tmp_path, write_json, converted_answers, spoil, reason):
    spoil(converted_answers["17"])
    file = write_json(tmp_path / "G1_tool.json", converted_answers)
    log = IngestLog()
    assert len(list(read_recordings([str(tmp_path)], "data.paths", no_tools, log))) == 1
    (aside,) = read_quarantine(log)
    assert (aside["file"], aside["row"], aside["reason"]) == (str(file), "17", reason)


def test_a_file_may_hold_recordings_of_any_form(tmp_path, tree_answer, chain_answer, converted_answers):
    conversation = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        "tools": [],
    }
    rows = [tree_answer, conversation, chain_answer, converted_answers["17"], {"role": "user"}, "words"]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    log = IngestLog()
    answers = list(read_recordings([str(tmp_path)], "data.paths", no_tools, log))
    assert [(a.row, len(a.turns)) for a in answers] == [(1, 3), (2, 1), (3, 2), (4, 3)]
    assert [(a["row"], a["reason"]) for a in read_quarantine(log)] == [
        (5, "no known form of recording"), (6, "not an object"),
    ]  # fmt: skip


def test_every_step_of_the_real_answers_comes_through(real_data):
    log = IngestLog()
    folders = [str(real_data / "toolbench/data_example/answer"), str(real_data / "stabletoolbench/data_example/answer")]
    answers = list(read_recordings(folders, "data.paths", no_tools, log))
    assert len(answers) == 13 and not read_quarantine(log)
    for answer in answers:
        raw = json.loads(answer.file.read_text("utf-8"))
        paths = raw["answer_generation"].get("train_messages")
        trajectory = make_trajectory(answer.turns, answer.solved, make_query(answer), 0)
        if paths:
            calls = [m["function_call"] for m in paths[-1] if m.get("function_call")]
            texts = [m["content"] for m in paths[-1] if m["role"] == "function"]
            assert [s.call.name for s in trajectory.steps] == [c["name"] for c in calls]
            assert [s.call.arguments for s in trajectory.steps] == [json.loads(c["arguments"]) for c in calls]
            assert [s.observation for s in trajectory.steps if s.status != StepStatus.FINISH] == texts
            recorded = json.loads(raw["answer_generation"]["final_answer"])
            assert trajectory.final_answer == recorded.get("final_answer")
        else:
            assert trajectory.stop_reason in (StopReason.STEP_LIMIT, StopReason.GAVE_UP)
        if "trys" in raw:
            inputs = [n["observation"] for n in raw["trys"][-1]["chain"] if n["node_type"] == "Action Input"]
            assert inputs[: len(trajectory.steps) - 1] == [s.observation for s in trajectory.steps[:-1]]
            assert len(inputs) == len(trajectory.steps)


def test_real_converted_answers_are_the_raw_ones(real_data):
    folder = real_data / "stabletoolbench" / "data_example"
    data = [
        {a.instruction: a for a in read_recordings([str(folder / name)], "data.paths", no_tools, IngestLog())}
        for name in ("answer", "model_predictions_converted")
    ]
    raw, converted = data
    assert raw.keys() == converted.keys() and len(raw) == 3
    for query, answer in raw.items():
        twin = converted[query]
        assert [(t.name, t.arguments) for t in answer.turns] == [(t.name, t.arguments) for t in twin.turns]
        assert [t.observation for t in answer.turns[:-1]] == [t.observation for t in twin.turns[:-1]]
        assert answer.tools == twin.tools
