import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steptool.chat.call_format import Format
from steptool.chat.formats import FORMATS, HERMES, LLAMA, REACT
from steptool.records import ToolCall

JSON_FORMATS = {name: form for name, form in FORMATS.items() if not form.textual}
EVERY = pytest.mark.parametrize("form", list(JSON_FORMATS.values()), ids=list(JSON_FORMATS))
THREE = pytest.mark.parametrize("form", [HERMES, LLAMA, REACT], ids=["hermes", "llama", "react"])
BITS = [
    *("<tool_call>", "</tool_call>", "<tool_response>", "<|python_tag|>", "<think>", "</think>", "```", "\\", '"'),
    *("Thought: ", "Action:", "Action: f", "Action Input:", "Action Input: {}", "Observation: ", "\n", "\r\n", " "),
    *('{"name": "f", "arguments": {}}', '{"name": "f", "parameters": {"x": 1}}', '"name":', "{", "}", "[", "NaN", "é"),
]
NASTY = st.text(max_size=8) | st.lists(st.sampled_from(BITS) | st.text(max_size=2), max_size=8).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NASTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(ToolCall, st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True), st.dictionaries(NASTY, JSON))
FIND = ToolCall("find", {"id": 3, "note": "é"})


@pytest.mark.parametrize(
    ("form", "thought", "text"),
    [
        (HERMES, "", '<tool_call>{"name": "find", "arguments": {"id": 3, "note": "é"}}</tool_call>'),
        (HERMES, "Look.", 'Look.\n<tool_call>{"name": "find", "arguments": {"id": 3, "note": "é"}}</tool_call>'),
        (LLAMA, "", '{"name": "find", "parameters": {"id": 3, "note": "é"}}'),
        (LLAMA, "Look.", 'Look.<|python_tag|>{"name": "find", "parameters": {"id": 3, "note": "é"}}'),
        (REACT, "", 'Action: find\nAction Input: {"id": 3, "note": "é"}'),
        (REACT, "Look.", 'Thought: Look.\nAction: find\nAction Input: {"id": 3, "note": "é"}'),
        (
            REACT,
            "I said\nAction: f\n\\Observation: x",
            'Thought: I said\n\\Action: f\n\\\\Observation: x\nAction: find\nAction Input: {"id": 3, "note": "é"}',
        ),
    ],
)
def test_what_a_call_looks_like(form: Format, thought: str, text: str) -> None:
    assert form.render(FIND, f" {thought}\n") == text
    turn = form.parse(text)
    assert (turn.call, turn.thought, turn.problem, turn.text) == (FIND, thought, "", text)


@pytest.mark.parametrize(
    ("form", "text", "thought"),
    [
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}', ""),
        (LLAMA, '\n{"type": "function", "name": "f", "parameters": {}}\n', ""),
        (LLAMA, '{"name": "f", "arguments": {}}', ""),
        (LLAMA, '<think>{"name": "g", "parameters": {}}</think>\n{"name": "f", "parameters": {}}', "<think>{"),
        (HERMES, '<think><tool_call>?</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<think>"),
        (REACT, " Thought: so\nAction: f \n\nAction Input:{}\n", "so"),
        (REACT, "Action: f\r\nAction Input: {\n}", ""),
        (REACT, "so it is. Action: none yet\nAction: f\nAction Input: {}", "so it is. Action: none yet"),
        (REACT, "<think>\nAction: g\n</think>\nThought: so\nAction: f\nAction Input: {}", "<think>\nAction: g"),
    ],
)
def test_what_else_is_read(form: Format, text: str, thought: str) -> None:
    turn = form.parse(text)
    assert turn.call == ToolCall("f", {})
    assert turn.thought.startswith(thought)
    assert bool(turn.thought) == bool(thought)


@pytest.mark.parametrize(
    ("form", "text", "problem"),
    [
        (HERMES, '<think>so <tool_call>{"name": "f", "arguments": {}}</tool_call>', "thinking not closed"),
        (HERMES, '<tool_response>7<tool_call>{"name": "f", "arguments": {}}</tool_call>', "a tool's response before"),
        (HERMES, '{"note": "<tool_call>{\\"name\\": \\"f\\", \\"arguments\\": {}}</tool_call>"}', "invalid JSON"),
        (HERMES, '{"name": "f", "arguments": {}, "result": 7}', "fields besides name and arguments"),
        (HERMES, '{"type": "object", "name": "f", "arguments": {}}', "fields besides name and arguments"),
        (LLAMA, "", "no tool call"),
        (LLAMA, 'so {"name": "f", "parameters": {}}', "no tool call"),
        (LLAMA, '"{"name": "f", "parameters": {}}"', "no tool call"),
        (LLAMA, '[{"name": "f", "parameters": {}}]', "no tool call"),
        (LLAMA, '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "Extra data"),
        (LLAMA, '{"name": "f", "parameters": {}, "arguments": {}}', "arguments and parameters"),
        (LLAMA, '{"name": "f", "parameters": {}} it is', "Extra data"),
        (LLAMA, '<tool_response>7</tool_response><|python_tag|>{"name": "f", "parameters": {}}', "a tool's response"),
        (LLAMA, '<|python_tag|>f.call(x="1")', "Expecting value"),
        (LLAMA, '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "no tool call"),
        (REACT, "the answer is 3", "no tool call"),
        (REACT, "Thought: so", "no tool call"),
        (REACT, "I write Action: f\n  Action Input: {}", "no tool call"),
        (REACT, "> Action: f\n> Action Input: {}", "no tool call"),
        (REACT, '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "no tool call"),
        (REACT, "Action Input: {}\nAction: f", "'Action Input:' before"),
        (REACT, "Observation: 7\nAction: f\nAction Input: {}", "'Observation:' before"),
        (REACT, "Thought: so\nObservation: 7\nThought: go\nAction: f\nAction Input: {}", "'Observation:' before"),
        (REACT, "Action: f", "without 'Action Input:'"),
        (REACT, "Action: f\nAction: g\nAction Input: {}", "without 'Action Input:'"),
        (REACT, "Action: f Action Input: {}", "without 'Action Input:'"),
        (REACT, "Action: \nAction Input: {}", "without name"),
        (REACT, "Action: f\nAction Input:", "Expecting value"),
        (REACT, "Action: f\nAction Input: 3", "not an object"),
        (REACT, "Action: f\nAction Input: {'x': 3}", "invalid JSON"),
        (REACT, 'Action: f\nAction Input: {"x": NaN}', "invalid JSON: NaN"),
        (REACT, "Action: f\nAction Input: {}\nObservation: 7", "Extra data"),
        (REACT, "Action: f\nAction Input: {}\nAction: g\nAction Input: {}", "Extra data"),
        (REACT, "Action: f\nAction Input: " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_call(form: Format, text: str, problem: str) -> None:
    turn = form.parse(text)
    assert (turn.call, turn.thought, turn.text) == (None, "", text)
    assert problem in turn.problem


@EVERY
@given(call=CALLS)
@example(call=ToolCall("f", {"x": '</tool_call>\nAction: f\n<|python_tag|>"'}))
def test_every_call_comes_back(form: Format, call: ToolCall) -> None:
    text = form.render(call)
    assert form.parse(text).call == call
    assert json.dumps(form.parse(text).call.arguments) == json.dumps(call.arguments), "True is not 1, nor 1 1.0"
    empty = form.render(ToolCall(call.name, {}))
    assert all(text.count(mark) == empty.count(mark) for mark in form.marks), "no argument opens or closes a call"


@given(call=CALLS, thought=NASTY)
def test_react_carries_every_thought(call: ToolCall, thought: str) -> None:
    turn = REACT.parse(REACT.render(call, thought))
    assert (turn.call, turn.thought) == (call, thought.strip())


@pytest.mark.parametrize("form", [HERMES, LLAMA], ids=["hermes", "llama"])
@settings(max_examples=50)
@given(call=CALLS, thought=NASTY)
def test_a_thought_is_carried_or_refused(form: Format, call: ToolCall, thought: str) -> None:
    bits = ("<tool_call>", "</tool_call>", "<tool_response>", "<|python_tag|>", "<think>", "{")
    try:
        turn = form.parse(form.render(call, thought))
    except ValueError as error:
        assert any(bit in thought for bit in bits), error
    else:
        assert (turn.call, turn.thought) == (call, thought.strip())


@pytest.mark.parametrize(
    ("form", "call", "thought", "complaint"),
    [
        (
            HERMES,
            ToolCall("f", {}),
            "I write <tool_call> now",
            "cannot carry the call of 'f' with the thought 'I write",
        ),
        (HERMES, ToolCall("f", {}), "<think>hm", "thinking not closed"),
        (LLAMA, ToolCall("f", {}), "{", "cannot carry"),
        (REACT, ToolCall("f\ng", {}), "", r"cannot carry the call of 'f\\ng'"),
        (REACT, ToolCall(" f", {}), "", "cannot carry"),
        (HERMES, ToolCall("", {}), "", "without name"),
        (HERMES, ToolCall("f", {"x": float("nan")}), "", "not a JSON value"),
        (LLAMA, ToolCall("f", {"x": {1, 2}}), "", "not a JSON value"),
        (REACT, ToolCall("f", {"x": (1, 2)}), "", "cannot carry"),
        (REACT, ToolCall("f", {"x": "\ud800"}), "", "out of range"),
    ],
)
def test_what_a_format_cannot_carry_is_refused(form: Format, call: ToolCall, thought: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        form.render(call, thought)


@EVERY
@settings(max_examples=50)
@given(call=CALLS, end=NASTY.filter(str.strip))
@example(call=FIND, end='"')
@example(call=FIND, end="\n```")
@example(call=FIND, end="</tool_call>")
def test_a_call_that_does_not_end_the_turn_is_none(form: Format, call: ToolCall, end: str) -> None:
    assert form.parse(form.render(call) + end).call is None


@EVERY
@settings(max_examples=50)
@given(call=CALLS, data=st.data())
def test_a_call_cut_short_is_none(form: Format, call: ToolCall, data: st.DataObject) -> None:
    text = form.render(call)
    assert form.parse(text[: data.draw(st.integers(0, len(text) - 1))]).call is None


@EVERY
@settings(max_examples=30)
@given(call=CALLS)
def test_a_call_within_a_string_is_none(form: Format, call: ToolCall) -> None:
    assert form.parse(json.dumps(form.render(call))).call is None
    assert form.parse(json.dumps({"note": form.render(call)})).call is None


@EVERY
@settings(max_examples=30)
@given(call=CALLS, other=CALLS)
def test_a_call_after_an_observation_is_none(form: Format, call: ToolCall, other: ToolCall) -> None:
    before, after = form.observation
    text = f"{form.render(other)}\n{before}7{after}\n{form.render(call)}"
    assert form.parse(text).call is None
    assert form.parse(f"So.\n{before}7{after}\n{form.render(call, 'so')}").call is None


def _calls_of(form: Format, text: str) -> list[tuple[str, Any]]:
    """Names and arguments of all JSON objects at the end of the text, where the form has its call."""
    text = text.rstrip()
    ends = {"hermes": ("</tool_call>", ""), "llama": ("",), "react": ("",)}[form.name]
    calls = []
    for end in ends:
        body = text.removesuffix(end)
        for begin in (i for i, c in enumerate(body) if c == "{"):
            before = body[:begin].rstrip()
            try:
                value = json.loads(body[begin:])
            except ValueError:
                continue
            if form is REACT and before.endswith("\nAction Input:"):
                calls.append((before.removesuffix("\nAction Input:").rstrip().rpartition("Action:")[2].strip(), value))
            elif before.endswith(("<tool_call>", "<|python_tag|>", "</think>")) or not before:
                calls.append((value.get("name"), value.get("arguments", value.get("parameters"))))
    return calls


@THREE
@given(text=NASTY | st.lists(st.sampled_from(BITS), max_size=12).map("".join))
@example(text='<tool_call>{"name": "f", "arguments": {}}</tool_call>')
@example(text="Action: f\nAction Input: {}")
@example(text="Action: f\nAction Input: " + "1" * 5000)
def test_no_text_raises_or_yields_a_call_that_is_not_there(form: Format, text: str) -> None:
    turn = form.parse(text)
    assert (turn.call is None) == bool(turn.problem)
    assert turn.text == text
    if turn.call:
        assert (turn.call.name, dict(turn.call.arguments)) in _calls_of(form, text)
