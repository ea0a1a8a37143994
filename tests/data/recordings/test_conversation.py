import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.chat.messages import FINISH_SCHEMA
from steptool.data.parsing import Record, UnusableError
from steptool.data.recordings.forms import read_recording
from steptool.data.recordings.recording import make_query, make_trajectory
from steptool.records import FINISH, StepStatus, StopReason, ToolCall

PLACE = Path("logs") / "may.jsonl"
TIDES = {
    "type": "function",
    "function": {"name": "tides", "description": "Tides", "parameters": {"type": "object", "properties": {}}},
}
QUESTION = {"role": "user", "content": "When is high water?"}


def call(*arguments, name="tides", content=None, ids=True):
    calls = [
        {"type": "function", "function": {"name": name, "arguments": json.dumps(a)}} | ({"id": f"c{n}"} if ids else {})
        for n, a in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def response(content, call_id="c0"):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def message(content, role="assistant"):
    return {"role": role, "content": content}


def no_tools():
    raise UnusableError("missing field 'tools'", "there are none")


def recording_of(*messages, offered=no_tools, **fields):
    value = {"messages": [QUESTION, *messages], "tools": [TIDES]} | fields
    return read_recording(Record(PLACE, 3, value), offered)


def trajectory_of(*messages, **fields):
    answer = recording_of(*messages, **fields)
    return make_trajectory(answer.turns, answer.solved, make_query(answer), 0)


def steps(trajectory):
    return [(s.call.arguments if s.call else None, str(s.status), s.observation) for s in trajectory.steps]


def test_a_conversation_becomes_a_query_and_a_trajectory():
    answer = recording_of(call({"at": "Bristol"}, content="I look."), response("9:12"), message("At 9:12."))
    query = make_query(answer)
    assert (query.query_id, query.tier, query.source) == ("logs-may-3", "may", "recorded")
    assert query.instruction == QUESTION["content"] and query.tools == (TIDES, FINISH_SCHEMA)
    trajectory = make_trajectory(answer.turns, None, query, 0)
    assert [s.call.name for s in trajectory.steps] == ["tides", FINISH]
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.final_answer == "At 9:12."
    assert trajectory.messages[1]["content"] == "I look."
    assert trajectory.messages[2] == {"role": "tool", "name": "tides", "content": "9:12"}


def test_function_call_reads_like_tool_calls():
    older = {"role": "assistant", "content": None, "function_call": {"name": "tides", "arguments": '{"at": "Bristol"}'}}
    answer = {"role": "function", "name": "tides", "content": "9:12"}
    assert (
        trajectory_of(older, answer, message("Nine.")).steps
        == trajectory_of(call({"at": "Bristol"}), response("9:12"), message("Nine.")).steps
    )


def test_calls_of_one_message_become_turns_and_take_their_own_responses():
    trajectory = trajectory_of(call({"n": 0}, {"n": 1}, content="Both."), response("one", "c1"), response("zero", "c0"))
    assert steps(trajectory) == [({"n": 0}, "ok", "zero"), ({"n": 1}, "ok", "one")]
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert trajectory.stop_reason is StopReason.STEP_LIMIT
    map_in_order = trajectory_of(call({"n": 0}, {"n": 1}, ids=False), message("zero", "tool"), message("one", "tool"))
    assert map_in_order.steps == trajectory.steps


def test_system_and_user_are_the_instruction():
    system, more = message("Speak of water only.", "system"), message("In Bristol.", "user")
    value = {"messages": [system, QUESTION, more, message("Nine.")], "tools": []}
    assert read_recording(Record(PLACE, 0, value), no_tools).instruction == (
        "Speak of water only.\n\nWhen is high water?\n\nIn Bristol."
    )


def test_a_user_may_go_on_after_an_answer():
    trajectory = trajectory_of(
        message("Where?"), message("Bristol.", "user"), call({"at": "Bristol"}), response("9:12"), message("Nine.")
    )
    assert [s.call.name for s in trajectory.steps] == [FINISH, "tides", FINISH]
    assert [m["role"] for m in trajectory.messages] == [
        "user", "assistant", "tool", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert trajectory.messages[2] == {"role": "tool", "name": FINISH, "content": ""}
    assert trajectory.final_answer == "Nine."


def test_a_user_may_interrupt_after_a_response():
    trajectory = trajectory_of(
        call({"n": 1}), response("one"), message("Stop.", "user"), message("Well.", "user"), message("Yes.")
    )
    assert trajectory.messages[3] == {"role": "user", "content": "Stop.\n\nWell."}


def test_where_finish_is_a_tool_words_are_no_answer():
    trajectory = trajectory_of(call({}), response("9:12"), message("At 9:12."), tools=[TIDES, FINISH_SCHEMA])
    assert steps(trajectory)[-1] == (None, "malformed", "") and trajectory.final_answer is None
    wrong = trajectory_of(message("I will call tides."), message('{"error": "no call"}', "tool"), message("At 9:12."))
    assert [str(s.status) for s in wrong.steps] == ["malformed", "finish"]
    assert wrong.messages[2] == {"role": "tool", "name": "error", "content": '{"error": "no call"}'}


def test_fields_may_be_json_texts_and_parts():
    parts = [{"type": "text", "text": "At "}, {"type": "text", "text": "9:12."}]
    plain = [QUESTION, call({"n": 1}), response("one"), message(parts)]
    for messages in (json.dumps(plain), [json.dumps(m) for m in plain]):
        for tools in (json.dumps([TIDES]), [json.dumps(TIDES)], [TIDES["function"]]):
            value = {"messages": messages, "tools": tools}
            answer = read_recording(Record(PLACE, 0, value), no_tools)
            assert answer.tools == (TIDES, FINISH_SCHEMA) and len(answer.turns) == 2
            assert json.loads(answer.turns[1].arguments)["final_answer"] == "At 9:12."


def test_arguments_may_be_an_object():
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "tides", "arguments": {"n": 1}}}]}
    assert trajectory_of(message, response("one")).steps[0].call == ToolCall("tides", {"n": 1})


def test_what_a_bare_function_leaves_out_is_filled_in():
    answer = recording_of(message("Nine."), tools=None, functions=[{"name": "tides"}])
    assert answer.tools[0]["function"] == {
        "name": "tides", "description": "", "parameters": {"type": "object", "properties": {}},
    }  # fmt: skip


def test_without_tools_those_of_the_environment_hold():
    assert recording_of(message("Nine."), tools=None, offered=lambda: (TIDES, FINISH_SCHEMA)).tools == (
        TIDES,
        FINISH_SCHEMA,
    )


def test_a_verdict_is_kept():
    assert (
        trajectory_of(message("Nine."), solved=1).solved == 1.0
        and trajectory_of(message("Nine."), solved=None).solved is None
    )


@pytest.mark.parametrize(
    "arguments",
    [
        '{"return_type": "give_answer", "final_answer": "There are 13 kettles, na',
        '{"return_type": "give_answer", "final_answer": "There are 13 kettles, na"',
        '{"return_type": "give_answer", "final_answer": "There are 13 kettles, na\\',
        '{"final_answer": "There are 13 kettles, na", "return_type": "give_answer"',
        "{'return_type': 'give_answer', 'final_answer': 'There are 13 kettles, na'}",
    ],
)
def test_a_finish_that_was_cut_off_finishes_with_what_is_left_of_its_answer(arguments):
    finish = {"role": "assistant", "function_call": {"name": FINISH, "arguments": arguments}}
    trajectory = trajectory_of(finish, tools=[TIDES, FINISH_SCHEMA], solved=1)
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.solved == 1.0
    assert trajectory.final_answer == "There are 13 kettles, na"
    assert steps(trajectory) == [
        ({"return_type": "give_answer", "final_answer": "There are 13 kettles, na"}, "finish", "")
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("One.\nTwo.", "One.\nTwo."),
        ("Tab\there", "Tab\there"),
        (r"It costs \$3, \'now\'.", "It costs $3, 'now'."),
        (r"A \"quoted\" caf\u00e9 \\ end", 'A "quoted" café \\ end'),
    ],
)
def test_a_finish_with_raw_newlines_or_bad_escapes_finishes(text, answer):
    arguments = '{"return_type": "give_answer", "final_answer": "' + text + '"}'
    finish = {"role": "assistant", "function_call": {"name": FINISH, "arguments": arguments}}
    trajectory = trajectory_of(finish, tools=[TIDES, FINISH_SCHEMA], solved=1)
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.final_answer == answer


def test_a_finish_without_a_readable_return_type_does_not_finish():
    for arguments in ('{"return_type": "give_ans', '{"final_answer": "Nine', "Nine."):
        finish = {"role": "assistant", "function_call": {"name": FINISH, "arguments": arguments}}
        trajectory = trajectory_of(finish, tools=[TIDES, FINISH_SCHEMA])
        assert trajectory.final_answer is None and trajectory.stop_reason is not StopReason.FINISHED


@pytest.mark.parametrize("arguments", ["null", "", " ", "{}", None])
def test_no_arguments_are_an_empty_object(arguments):
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "tides", "arguments": arguments}}]}
    assert trajectory_of(message, response("one")).steps[0].call == ToolCall("tides", {})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '[1, {"x": -1e999}]'])
def test_numbers_that_json_cannot_write_are_refused(number):
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "tides", "arguments": f'{{"n": {number}}}'}}]}
    with pytest.raises(UnusableError, match="a number that JSON cannot write: call 0 \\(tides\\)"):
        trajectory_of(message, response("one"))
    data = {"role": "assistant", "tool_calls": [{"function": {"name": "tides", "arguments": {"n": float("nan")}}}]}
    with pytest.raises(UnusableError, match="a number that JSON cannot write"):
        trajectory_of(data, response("one"))


def message_named(name, content):
    return {"role": "tool", "name": name, "content": content}


def two_calls(ids):
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("tides", "waves")]
    if ids:
        calls[0]["id"], calls[1]["id"] = ids
    return {"role": "assistant", "content": "", "tool_calls": calls}


def observations(trajectory):
    return [(s.call.name, s.observation) for s in trajectory.steps]


def test_responses_without_ids_belong_to_calls_by_their_names():
    swapped = trajectory_of(two_calls(None), message_named("waves", "2 m"), message_named("tides", "9:12"))
    assert observations(swapped) == [("tides", "9:12"), ("waves", "2 m")]
    with_ids = trajectory_of(two_calls(("a", "b")), message_named("waves", "2 m"), message_named("tides", "9:12"))
    assert observations(with_ids) == [("tides", "9:12"), ("waves", "2 m")]


@pytest.mark.parametrize(
    ("calls", "responses"),
    [
        (None, [message_named("waves", "2 m"), message_named("wind", "4")]),
        (None, [message("2 m", "tool"), message_named("tides", "9:12")]),
        (("a", "b"), [response("2 m", "b"), response("9:12", "c")]),
    ],
)
def test_a_response_that_belongs_to_no_call_is_refused(calls, responses):
    with pytest.raises(UnusableError, match=r"a response without a call: messages\[\d\]"):
        trajectory_of(two_calls(calls), *responses)


def test_a_call_without_a_name_is_one_failed_step():
    for name in ("", " "):
        trajectory = trajectory_of(
            call({"n": 1}), response("one"), call({"n": 2}, name=name), response("no such tool"), message("Nine.")
        )
        assert steps(trajectory)[:2] == [({"n": 1}, "ok", "one"), (None, "malformed", "no such tool")]
        assert trajectory.final_answer == "Nine." and len(trajectory.steps) == 3


def test_reasoning_in_a_field_of_its_own_is_the_thought():
    for field in ("reasoning_content", "reasoning", "thinking"):
        first = call({"n": 1}, content="I look.") | {field: "Where?"}
        trajectory = trajectory_of(first, response("one"), message("Nine.") | {field: "So nine."})
        assert trajectory.messages[1]["content"] == "<think>\nWhere?\n</think>\nI look."
        assert trajectory.final_answer == "Nine."
        assert trajectory.messages[3]["content"] == "<think>\nSo nine.\n</think>"
    parts = [{"type": "reasoning.text", "text": "Where?"}, {"type": "reasoning.encrypted", "data": "x"}]
    detailed = trajectory_of(call({"n": 1}) | {"reasoning": None, "reasoning_details": parts}, response("one"))
    assert detailed.messages[1]["content"] == "<think>\nWhere?\n</think>"


def test_thoughts_do_not_stay_in_the_final_answer():
    trajectory = trajectory_of(message("<think>\nSo nine.\n</think>\n\nNine."))
    assert trajectory.final_answer == "Nine." and trajectory.messages[1]["content"] == "<think>\nSo nine.\n</think>"
    for opened, closed in (("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("[THINK]", "[/THINK]")):
        trajectory = trajectory_of(message(f"{opened}So nine.{closed}Nine."))
        assert (trajectory.final_answer, trajectory.messages[1]["content"]) == ("Nine.", "<think>So nine.</think>")
        cut = trajectory_of(message(f"{opened}So nine"))
        assert cut.final_answer is None and steps(cut) == [(None, "malformed", "")]
    cut = trajectory_of(message("<think>So nine"))
    assert cut.final_answer is None and steps(cut) == [(None, "malformed", "")]


def test_tools_with_an_input_schema_keep_their_parameters():
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tool, _) = recording_of(
        message("Nine."), tools=[{"name": "tides", "description": "Tides", "input_schema": parameters}]
    ).tools
    assert tool["function"] == {"name": "tides", "description": "Tides", "parameters": parameters}


def test_tools_of_another_form_are_refused_and_not_emptied():
    with pytest.raises(UnusableError, match=r"tools\[0\]: unknown fields \['args'\]"):
        recording_of(message("Nine."), tools=[{"name": "tides", "args": {"n": "int"}}])


def test_a_missing_verdict_may_be_written_as_no_number():
    assert trajectory_of(message("Nine."), solved=float("nan")).solved is None


def test_a_refusal_is_what_the_assistant_says():
    trajectory = trajectory_of({"role": "assistant", "content": None, "refusal": "I must not."})
    assert trajectory.final_answer == "I must not."


def test_tools_with_numbers_that_json_cannot_write_are_refused():
    odd = {"name": "tides", "parameters": {"type": "object", "properties": {"n": {"default": float("inf")}}}}
    with pytest.raises(UnusableError, match=r"a number that JSON cannot write: tools"):
        recording_of(message("Nine."), tools=[odd])


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("messages", "fields", "reason", "named"),
    [
        ([call({})], {}, "a call without a response", "call 0 (tides)"),
        ([call({}, {}), response("one", "c1")], {}, "a call without a response", "call 0 (tides)"),
        ([call({}), message("Hello?", "user"), message("Yes.")], {}, "a call without a response", "call 0 (tides)"),
        ([call({}), response("a"), response("b")], {}, "a response without a call", "messages[3]"),
        ([response("a"), message("Nine.")], {}, "a message of another role", "messages[1]"),
        ([message("Nine."), message("Be brief.", "critic")], {}, "a message of another role", "messages[2]"),
        ([], {}, "no recorded step", "assistant"),
        ([message(None)], {}, "no recorded step", "no words"),
        ([message("Nine.")], {"messages": [message("Nine.")]}, "no instruction", "user"),
        ([], {"messages": {}}, "ill-typed field 'messages'", "'messages'"),
        ([], {"messages": "[{"}, "not JSON", "messages"),
        ([], {"messages": [3]}, "not an object", "messages[0]"),
        ([{"content": "Nine."}], {}, "missing field 'role'", "messages[1].role"),
        ([message(IMAGE, "user"), message("Nine.")], {}, "content that is no text", "messages[1].content"),
        (
            [{"role": "assistant", "function_call": {"arguments": ""}}, response("a")],
            {},
            "missing field 'name'",
            "function_call",
        ),
        ([{"role": "assistant", "tool_calls": [None]}], {}, "not an object", "messages[1].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], {}, "ill-typed field 'tool_calls'", "messages[1].tool_calls"),
        ([message("Nine.")], {"tools": None}, "missing field 'tools'", "none"),
        ([message("Nine.")], {"tools": {}}, "ill-typed field 'tools'", "tools"),
        ([message("Nine.")], {"tools": [3]}, "tool schema that is no schema", "tools[0]"),
        ([message("Nine.")], {"tools": [TIDES, TIDES]}, "tool schema that is no schema", "tools[1]"),
        ([message("Nine.")], {"solved": 2}, "ill-typed field 'solved'", "2"),
        ([message("Nine.")], {"solved": "yes"}, "ill-typed field 'solved'", "yes"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(messages, fields, reason, named):
    with pytest.raises(UnusableError) as refusal:
        recording_of(*messages, **fields)
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
        trajectory = trajectory_of(*messages, **fields)
    except UnusableError as error:
        assert error.reason and error.detail
    else:
        assert trajectory.steps and all(isinstance(s.status, StepStatus) for s in trajectory.steps)
        assert json.loads(json.dumps(trajectory.messages)) == trajectory.messages


def test_system_and_developer_keep_their_roles_before_and_between_the_turns() -> None:
    opening = [message("Be brief.", "system"), message("Use the tools.", "developer"), QUESTION]
    turns = [call({}), response("9:12"), message("The user is in a hurry.", "system"), message("Well?", "user")]
    recording = recording_of(messages=[*opening, *turns, message("At nine.")])
    assert recording.instruction == "Be brief.\n\nUse the tools.\n\nWhen is high water?"
    assert list(recording.opening) == opening
    trajectory = make_trajectory(recording.turns, None, make_query(recording), 0)
    assert trajectory.messages[:3] == opening
    assert [(m["role"], m["content"]) for m in trajectory.messages[4:7]] == [
        ("tool", "9:12"), ("system", "The user is in a hurry."), ("user", "Well?"),
    ]  # fmt: skip
    assert (len(trajectory.steps), trajectory.final_answer) == (2, "At nine.")


def test_what_the_user_alone_says_needs_no_messages_of_its_own() -> None:
    recording = recording_of(messages=[message("First,", "user"), message("then.", "user"), message("Done.")])
    assert (recording.instruction, recording.opening) == ("First,\n\nthen.", ())
