import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.chat.finish import FINISH_SCHEMA
from steptool.data.ingest_log import Record, UnusableError
from steptool.data.recordings.forms import read_recording
from steptool.data.recordings.recording import recording_query, recording_trajectory
from steptool.records import FINISH, StepStatus, StopReason, ToolCall

PLACE = Path("logs") / "may.jsonl"
TIDES = {
    "type": "function",
    "function": {"name": "tides", "description": "Tides", "parameters": {"type": "object", "properties": {}}},
}
ASKED = {"role": "user", "content": "When is high water?"}


def call(*arguments, name="tides", content=None, ids=True):
    calls = [
        {"type": "function", "function": {"name": name, "arguments": json.dumps(a)}} | ({"id": f"c{n}"} if ids else {})
        for n, a in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def response(content, call_id="c0"):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def said(content, role="assistant"):
    return {"role": role, "content": content}


def no_tools():
    raise UnusableError("missing field 'tools'", "there are none")


def answered(*messages, offered=no_tools, **fields):
    value = {"messages": [ASKED, *messages], "tools": [TIDES]} | fields
    return read_recording(Record(PLACE, 3, value), offered)


def told(*messages, **fields):
    answer = answered(*messages, **fields)
    return recording_trajectory(answer.turns, answer.solved, recording_query(answer), 0)


def steps(trajectory):
    return [(s.call.arguments if s.call else None, str(s.status), s.observation) for s in trajectory.steps]


def test_a_conversation_becomes_a_query_and_a_trajectory():
    answer = answered(call({"at": "Bristol"}, content="I look."), response("9:12"), said("At 9:12."))
    query = recording_query(answer)
    assert (query.query_id, query.tier, query.source) == ("logs-may-3", "may", "recorded")
    assert query.instruction == ASKED["content"] and query.tools == (TIDES, FINISH_SCHEMA)
    trajectory = recording_trajectory(answer.turns, None, query, 0)
    assert [s.call.name for s in trajectory.steps] == ["tides", FINISH]
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.final_answer == "At 9:12."
    assert trajectory.messages[1]["content"] == "I look."
    assert trajectory.messages[2] == {"role": "tool", "name": "tides", "content": "9:12"}


def test_function_call_reads_like_tool_calls():
    older = {"role": "assistant", "content": None, "function_call": {"name": "tides", "arguments": '{"at": "Bristol"}'}}
    answer = {"role": "function", "name": "tides", "content": "9:12"}
    assert (
        told(older, answer, said("Nine.")).steps == told(call({"at": "Bristol"}), response("9:12"), said("Nine.")).steps
    )


def test_calls_of_one_message_become_turns_and_take_their_own_responses():
    trajectory = told(call({"n": 0}, {"n": 1}, content="Both."), response("one", "c1"), response("zero", "c0"))
    assert steps(trajectory) == [({"n": 0}, "ok", "zero"), ({"n": 1}, "ok", "one")]
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert trajectory.stop_reason is StopReason.STEP_LIMIT
    in_order = told(call({"n": 0}, {"n": 1}, ids=False), said("zero", "tool"), said("one", "tool"))
    assert in_order.steps == trajectory.steps


def test_system_and_user_are_the_instruction():
    system, more = said("Speak of water only.", "system"), said("In Bristol.", "user")
    value = {"messages": [system, ASKED, more, said("Nine.")], "tools": []}
    assert read_recording(Record(PLACE, 0, value), no_tools).instruction == (
        "Speak of water only.\n\nWhen is high water?\n\nIn Bristol."
    )


def test_a_user_may_go_on_after_an_answer():
    trajectory = told(
        said("Where?"), said("Bristol.", "user"), call({"at": "Bristol"}), response("9:12"), said("Nine.")
    )
    assert [s.call.name for s in trajectory.steps] == [FINISH, "tides", FINISH]
    assert [m["role"] for m in trajectory.messages] == [
        "user", "assistant", "tool", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert trajectory.messages[2] == {"role": "tool", "name": FINISH, "content": ""}
    assert trajectory.final_answer == "Nine."


def test_a_user_may_interrupt_after_a_response():
    trajectory = told(call({"n": 1}), response("one"), said("Stop.", "user"), said("Well.", "user"), said("Yes."))
    assert trajectory.messages[3] == {"role": "user", "content": "Stop.\n\nWell."}


def test_where_finish_is_a_tool_words_are_no_answer():
    trajectory = told(call({}), response("9:12"), said("At 9:12."), tools=[TIDES, FINISH_SCHEMA])
    assert steps(trajectory)[-1] == (None, "malformed", "") and trajectory.final_answer is None
    wrong = told(said("I will call tides."), said('{"error": "no call"}', "tool"), said("At 9:12."))
    assert [str(s.status) for s in wrong.steps] == ["malformed", "finish"]
    assert wrong.messages[2] == {"role": "tool", "name": "error", "content": '{"error": "no call"}'}


def test_fields_may_be_json_texts_and_parts():
    parts = [{"type": "text", "text": "At "}, {"type": "text", "text": "9:12."}]
    plain = [ASKED, call({"n": 1}), response("one"), said(parts)]
    for messages in (json.dumps(plain), [json.dumps(m) for m in plain]):
        for tools in (json.dumps([TIDES]), [json.dumps(TIDES)], [TIDES["function"]]):
            value = {"messages": messages, "tools": tools}
            answer = read_recording(Record(PLACE, 0, value), no_tools)
            assert answer.tools == (TIDES, FINISH_SCHEMA) and len(answer.turns) == 2
            assert json.loads(answer.turns[1].arguments)["final_answer"] == "At 9:12."


def test_arguments_may_be_an_object():
    made = {"role": "assistant", "tool_calls": [{"function": {"name": "tides", "arguments": {"n": 1}}}]}
    assert told(made, response("one")).steps[0].call == ToolCall("tides", {"n": 1})


def test_what_a_bare_function_leaves_out_is_filled_in():
    answer = answered(said("Nine."), tools=None, functions=[{"name": "tides"}])
    assert answer.tools[0]["function"] == {
        "name": "tides", "description": "", "parameters": {"type": "object", "properties": {}},
    }  # fmt: skip


def test_without_tools_those_of_the_environment_hold():
    assert answered(said("Nine."), tools=None, offered=lambda: (TIDES, FINISH_SCHEMA)).tools == (TIDES, FINISH_SCHEMA)


def test_a_verdict_is_kept():
    assert told(said("Nine."), solved=1).solved == 1.0 and told(said("Nine."), solved=None).solved is None


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("messages", "fields", "reason", "named"),
    [
        ([call({})], {}, "a call without a response", "call 0 (tides)"),
        ([call({}, {}), response("one", "c1")], {}, "a call without a response", "call 0 (tides)"),
        ([call({}), said("Hello?", "user"), said("Yes.")], {}, "a call without a response", "call 0 (tides)"),
        ([call({}), response("a"), response("b")], {}, "a response without a call", "messages[3]"),
        ([response("a"), said("Nine.")], {}, "a message of another role", "messages[1]"),
        ([said("Nine."), said("Be brief.", "system")], {}, "a message of another role", "messages[2]"),
        ([], {}, "no recorded step", "assistant"),
        ([said(None)], {}, "no recorded step", "no words"),
        ([said("Nine.")], {"messages": [said("Nine.")]}, "no instruction", "user"),
        ([], {"messages": {}}, "ill-typed field 'messages'", "'messages'"),
        ([], {"messages": "[{"}, "not JSON", "messages"),
        ([], {"messages": [3]}, "not an object", "messages[0]"),
        ([{"content": "Nine."}], {}, "missing field 'role'", "messages[1].role"),
        ([said(IMAGE, "user"), said("Nine.")], {}, "content that is no text", "messages[1].content"),
        ([call({}, name=" "), response("a")], {}, "empty field 'name'", "messages[1].tool_calls[0].name"),
        ([{"role": "assistant", "tool_calls": [None]}], {}, "not an object", "messages[1].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], {}, "ill-typed field 'tool_calls'", "messages[1].tool_calls"),
        ([said("Nine.")], {"tools": None}, "missing field 'tools'", "none"),
        ([said("Nine.")], {"tools": {}}, "ill-typed field 'tools'", "tools"),
        ([said("Nine.")], {"tools": [3]}, "tool schema that is no schema", "tools[0]"),
        ([said("Nine.")], {"tools": [TIDES, TIDES]}, "tool schema that is no schema", "tools[1]"),
        ([said("Nine.")], {"solved": 2}, "ill-typed field 'solved'", "2"),
        ([said("Nine.")], {"solved": "yes"}, "ill-typed field 'solved'", "yes"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(messages, fields, reason, named):
    with pytest.raises(UnusableError) as refusal:
        answered(*messages, **fields)
    assert refusal.value.reason == reason and named in refusal.value.detail


CONTENT = (
    st.none() | st.text(max_size=4) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
)
ODD = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({})
FUNCTION = st.fixed_dictionaries({}, optional={"name": st.sampled_from(["tides", FINISH, ""]) | ODD, "arguments": ODD})
CALL = st.fixed_dictionaries({}, optional={"id": st.sampled_from(["a", "b"]) | ODD, "function": FUNCTION | ODD})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function", "system", "x"]) | ODD},
    optional={
        "content": CONTENT | ODD,
        "tool_calls": st.lists(CALL | ODD, max_size=3) | ODD,
        "function_call": FUNCTION | ODD,
        "tool_call_id": st.sampled_from(["a", "b"]) | ODD,
    },
)


@settings(max_examples=400)
@given(st.lists(MESSAGE | ODD, max_size=7), st.fixed_dictionaries({}, optional={"tools": ODD, "solved": ODD}))
def test_any_messages_are_read_or_refused(messages, fields):
    try:
        trajectory = told(*messages, **fields)
    except UnusableError as error:
        assert error.reason and error.detail
    else:
        assert trajectory.steps and all(isinstance(s.status, StepStatus) for s in trajectory.steps)
        assert json.loads(json.dumps(trajectory.messages)) == trajectory.messages
