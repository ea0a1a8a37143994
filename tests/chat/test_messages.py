import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.chat.call_format import Format
from steptool.chat.formats import FORMATS, HERMES, LLAMA, REACT
from steptool.chat.messages import (
    FINISH_SCHEMA,
    NO_CALL,
    make_call_message,
    make_tool_message,
    read_calls,
    split_calls,
)
from steptool.chat.turns import describe, from_text, join_user_messages, to_text, with_tools
from steptool.records import Message, ToolCall

EVERY = pytest.mark.parametrize("form", list(FORMATS.values()), ids=list(FORMATS))
BITS = [
    *("<tool_call>", "</tool_call>", "<tool_response>\n", "\n</tool_response>", "<|python_tag|>", "<think>", "\\", '"'),
    *(
        "Thought: ",
        "Action: f\n",
        "Action Input: {}",
        "Observation: ",
        "\n",
        " ",
        '{"name": "f", "arguments": {}}',
        "é",
    ),
]
NASTY = st.text(max_size=6) | st.lists(st.sampled_from(BITS) | st.text(max_size=2), max_size=5).map("".join)
JSON = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NASTY
VALUES = JSON | st.lists(JSON, max_size=2) | st.dictionaries(NASTY, JSON, max_size=2)
CALLS = st.builds(ToolCall, st.sampled_from(["find", "get_7", "Finish"]), st.dictionaries(NASTY, VALUES, max_size=2))
WORDS = st.text("abc .\n\"'", max_size=6)
GET, SET = ToolCall("get", {"key": "a"}), ToolCall("set", {"key": "b", "to": 3})


@st.composite
def turns(draw: st.DrawFn, thoughts: st.SearchStrategy[str] = NASTY, most: int = 3) -> list[Message]:
    """What stands between two words of a user: calls and their answers, or text."""
    calls = draw(st.lists(CALLS, max_size=most))
    if not calls:
        spoken: Message = {"role": "assistant", "content": draw(NASTY)}
        return [spoken, make_tool_message(NO_CALL, draw(NASTY))] if draw(st.booleans()) else [spoken]
    message = make_call_message(calls[0], draw(thoughts))
    message["tool_calls"] = [
        {"type": "function", "id": f"call{n}", "function": {"name": c.name, "arguments": dict(c.arguments)}}
        for n, c in enumerate(calls)
    ]
    answers = [{**make_tool_message(c.name, draw(NASTY)), "tool_call_id": f"call{n}"} for n, c in enumerate(calls)]
    return [message, *draw(st.permutations(answers))]


def conversations(thoughts: st.SearchStrategy[str] = NASTY, most: int = 3) -> st.SearchStrategy[list[Message]]:
    user = st.builds(lambda text: [{"role": "user", "content": text}], NASTY)
    system = st.builds(lambda text: [{"role": "system", "content": text}], NASTY)
    parts = st.tuples(system | user, st.lists(user | turns(thoughts, most), max_size=4))
    return parts.map(lambda p: [m for part in [p[0], *p[1]] for m in part])


def calls_in(messages: list[Message]) -> list[ToolCall]:
    return [call for message in messages for call in read_calls(message)]


def plainly(messages: list[Message]) -> list[Message]:
    """One call in each turn, without ids, and thoughts without white space around them."""
    plain_messages = []
    for message in split_calls(messages):
        fields = {k: v for k, v in message.items() if k != "tool_call_id"}
        calls = read_calls(message)
        plain_messages.append(make_call_message(calls[0], message["content"].strip()) if calls else fields)
    return plain_messages


def test_several_calls_become_as_many_turns_each_with_its_answer() -> None:
    message = make_call_message(GET, "both")
    message["tool_calls"] = [
        {"type": "function", "id": "1", "function": {"name": "get", "arguments": '{"key": "a"}'}},
        {"type": "function", "id": "2", "function": {"name": "set", "arguments": {"key": "b", "to": 3}}},
    ]
    user: Message = {"role": "user", "content": "go"}
    answers: list[Message] = [
        {"role": "tool", "tool_call_id": "2", "content": "done"},
        {"role": "tool", "tool_call_id": "9", "name": "lost", "content": "?"},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
    ]
    first, second = make_call_message(GET, "both"), make_call_message(SET)
    first["tool_calls"][0]["id"], second["tool_calls"][0]["id"] = "1", "2"
    assert split_calls([user, message, *answers, user]) == [
        user,
        first,
        {"role": "tool", "tool_call_id": "1", "name": "get", "content": "7"},
        second,
        {"role": "tool", "tool_call_id": "2", "name": "set", "content": "done"},
        {"role": "tool", "tool_call_id": "9", "name": "lost", "content": "?"},
        user,
    ]


def test_without_ids_answers_follow_in_their_order() -> None:
    message = {**make_call_message(GET), "content": None, "reasoning": "kept"}
    message["tool_calls"] = message["tool_calls"] + make_call_message(SET)["tool_calls"]
    turns = split_calls([message, make_tool_message("get", "7"), make_tool_message("set", "done")])
    assert turns == [
        {**make_call_message(GET), "reasoning": "kept"},
        make_tool_message("get", "7"),
        make_call_message(SET),
        make_tool_message("set", "done"),
    ]
    assert split_calls([message]) == [turns[0], turns[2]], "what was not answered stays without an answer"


def test_without_ids_answers_in_another_order_follow_the_call_of_their_name() -> None:
    message = make_call_message(GET)
    message["tool_calls"] = message["tool_calls"] + make_call_message(SET)["tool_calls"]
    swapped = [make_tool_message("set", "done"), make_tool_message("get", "7")]
    assert split_calls([message, *swapped]) == [
        make_call_message(GET), make_tool_message("get", "7"), make_call_message(SET), make_tool_message("set", "done"),
    ]  # fmt: skip
    other = make_tool_message("look", "nothing")
    assert split_calls([message, other]) == [make_call_message(GET), make_call_message(SET), other]


def test_arguments_may_be_missing_in_words() -> None:
    for arguments in ("", " ", "null"):
        message = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": arguments}}]}
        assert read_calls(message) == [ToolCall("look", {})]


@pytest.mark.parametrize(
    ("calls", "problem"),
    [("look", "a list of calls"), ({"name": "look"}, "a list of calls"), (["look"], "not an object")],
)
def test_what_is_no_list_of_calls_is_refused(calls: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_calls({"role": "assistant", "tool_calls": calls})


@given(conversations())
def test_splitting_keeps_the_calls_and_is_done_once(messages: list[Message]) -> None:
    split = split_calls(messages)
    assert calls_in(split) == calls_in(messages)
    assert all(len(read_calls(m)) <= 1 for m in split)
    assert split_calls(split) == split
    for turn, answer in pairwise(split):
        if turn.get("tool_calls"):
            assert answer["tool_call_id"] == turn["tool_calls"][0]["id"]


@given(conversations())
@settings(max_examples=200)
def test_react_carries_every_conversation(messages: list[Message]) -> None:
    if any(m["role"] == "assistant" and not m.get("tool_calls") and REACT.parse(m["content"]).call for m in messages):
        with pytest.raises(ValueError, match="would be read as a call"):
            to_text(messages, REACT)
        return
    text = to_text(messages, REACT)
    assert all(m.keys() == {"role", "content"} and m["role"] != "tool" for m in text)
    assert from_text(text, REACT) == plainly(messages)


@pytest.mark.parametrize("form", [HERMES, LLAMA], ids=["hermes", "llama"])
@given(messages=conversations(thoughts=WORDS))
def test_the_others_carry_every_conversation_with_plain_thoughts(form: Format, messages: list[Message]) -> None:
    spoken = [m["content"] for m in messages if m["role"] == "assistant" and not m.get("tool_calls")]
    if not any(form.parse(text).call for text in spoken):
        assert from_text(to_text(messages, form), form) == plainly(messages)


@EVERY
@given(messages=conversations())
def test_any_conversation_is_carried_or_refused(form: Format, messages: list[Message]) -> None:
    try:
        text = to_text(messages, form)
    except ValueError:
        return
    assert calls_in(from_text(text, form)) == calls_in(messages)


@EVERY
@given(messages=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), NASTY), max_size=5))
def test_any_text_can_be_read_and_written_again(form: Format, messages: list[tuple[str, str]]) -> None:
    data = from_text([{"role": role, "content": text} for role, text in messages], form)
    for (_, text), message in zip(messages, data, strict=True):
        assert read_calls(message) == ([form.parse(text).call] if message.get("tool_calls") else [])
    assert from_text(to_text(data, form), form) == data


def test_a_user_who_writes_an_observation_is_not_taken_for_a_tool() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Observation: x"},
        {"role": "user", "content": "\\Observation: x"},
    ]
    text = to_text([*messages, make_tool_message(NO_CALL, "Action: f")], REACT)
    assert [m["content"] for m in text] == [
        "\\Observation: x",
        "\\\\Observation: x",
        "Observation: Action: f",
    ]
    assert from_text(text, REACT) == [*messages, make_tool_message(NO_CALL, "Action: f")]


def test_the_description_shows_schema_form_and_answer() -> None:
    tool = {"type": "function", "function": {"name": "get", "description": "é", "parameters": {"type": "object"}}}
    assert describe([tool], REACT) == (
        "Solve the task with these tools, one call in each turn:\n"
        '{"name": "get", "description": "é", "parameters": {"type": "object"}}\n\n'
        "End your turn with the call, in this form:\n"
        "Thought: <what you know and what to do next>\nAction: <name of the tool>\nAction Input: <object>\n\n"
        "Once the task is done, answer in a turn without a call, in a line that begins with Final Answer:.\n\n"
        "The next message brings what the tool answers, in this form:\nObservation: <answer>"
    )
    assert "without a call" not in describe([tool, FINISH_SCHEMA], REACT)
    system: Message = {"role": "system", "content": "Be brief."}
    user: Message = {"role": "user", "content": "go"}
    assert with_tools([system, user], [], REACT, "system") == [system, user]
    assert with_tools([user], [], REACT, "system") == [user]
    (description, _) = with_tools([system, user], [tool], HERMES, "user")
    assert description == {"role": "user", "content": f"Be brief.\n\n{describe([tool], HERMES)}"}
    assert join_user_messages([description, user]) == [{"role": "user", "content": description["content"] + "\n\ngo"}]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{'x': 1}"}}]}, "invalid JSON.*got {'name': 'f'"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "3"}}]}, "arguments are not an object"),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "tool call without name"),
        ({"tool_calls": [{"name": "f"}]}, r"tool_calls\[0\]: tool call is not an object"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": '{"x": NaN}'}}]}, "invalid JSON: NaN"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {}}}], "content": ["?"]}, "needs text as its content"),
    ],
)
def test_messages_that_are_none_are_refused(message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        split_calls([{"role": "assistant", "content": "", **message}])


def _read_recorded(message: Message) -> Message:
    """A message with the older function_call or role `function` in the form that we keep."""
    fields = {name: value for name, value in message.items() if name != "function_call"}
    if message["role"] == "function":
        return {**fields, "role": "tool"}
    call = message.get("function_call")
    return {**fields, "tool_calls": [{"type": "function", "function": call}]} if call else fields


def test_recorded_answers_keep_every_call_in_every_format() -> None:
    data = Path(__file__).parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the public data is not on this machine")
    documents = (json.loads(path.read_text(encoding="utf-8")) for path in data.rglob("*.json"))
    answers = [d["answer_generation"] for d in documents if isinstance(d, dict) and "answer_generation" in d]
    recorded = [messages for answer in answers for messages in answer.get("train_messages") or []]
    raw = sum(bool(m.get("function_call")) + len(m.get("tool_calls") or []) for messages in recorded for m in messages)
    result = [[_read_recorded(message) for message in messages] for messages in recorded]
    calls = [call for messages in result for call in calls_in(messages)]
    assert len(calls) == raw > 0
    for form in (form for form in FORMATS.values() if not form.textual):  # bare text needs the tools' schemas
        assert [call for messages in result for call in calls_in(from_text(to_text(messages, form), form))] == calls
