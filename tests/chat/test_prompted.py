import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steptool.chat.call_format import CALL_CLOSE, CALL_OPEN
from steptool.chat.formats import HERMES
from steptool.records import ToolCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PIECES = st.sampled_from(
    [
        CALL_OPEN,
        CALL_CLOSE,
        '{"name": "f", "arguments": {}}',
        '{"name":',
        '"arguments"',
        "{",
        "}",
        "[",
        '"',
        "\\ud800",
        "NaN",
        "1e999",
    ]
)


def test_a_call_after_a_thought() -> None:
    turn = HERMES.parse('I look it up. <tool_call>\n{"name": "find", "arguments": {"id": 3}}\n</tool_call>\n')
    assert turn.call == ToolCall("find", {"id": 3})
    assert (turn.thought, turn.problem) == ("I look it up.", "")


@pytest.mark.parametrize("key", ["parameters", "arguments"])
def test_a_bare_object_is_a_call(key: str) -> None:
    turn = HERMES.parse(f' {{"name": "find", "{key}": {{"id": 3}}}}\n')
    assert turn.call == ToolCall("find", {"id": 3})
    assert turn.thought == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no tool call"),
        ("the answer is 3", "no tool call"),
        ('I call {"name": "f", "arguments": {}}', "no tool call"),
        ('<tool_call>{"name": "f", "arguments": {}}', "tool call not closed"),
        ('{"name": "f", "arguments": {}}</tool_call>', "tool call not closed"),
        ('</tool_call>{"name": "f", "arguments": {}}<tool_call>', "tool call not closed"),
        (HERMES.render(ToolCall("f", {})) * 2, "more than one tool call"),
        (HERMES.render(ToolCall("f", {})) + " done", "text after the tool call"),
        ("<tool_call>f()</tool_call>", "invalid JSON: Expecting value"),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "invalid JSON: NaN"),
        ('<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "invalid JSON: a value out of range"),
        ('<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', "invalid JSON: a value out of range"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "invalid JSON: nested too deeply"),
        ('<tool_call>["f"]</tool_call>', "tool call is not an object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "tool call without name"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "tool call without name"),
        ('<tool_call>{"name": "f"}</tool_call>', "arguments are not an object"),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "arguments are not an object"),
    ],
)
def test_what_is_no_call_has_a_problem(text: str, problem: str) -> None:
    turn = HERMES.parse(text)
    assert (turn.call, turn.problem, turn.text) == (None, problem, text)


@given(st.text() | st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join))
@example('{"name": "f", "arguments": ' + "1" * 5000 + "}")
def test_no_text_raises(text: str) -> None:
    turn = HERMES.parse(text)
    assert turn.text == text
    assert (turn.call is None) == bool(turn.problem)
    if turn.call:
        assert turn.call.name
        json.dumps(dict(turn.call.arguments), allow_nan=False, ensure_ascii=False).encode()


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_rendered_is_read_back(name: str, arguments: dict[str, object]) -> None:
    call = ToolCall(name, arguments)
    text = HERMES.render(call, thought="so: ")
    turn = HERMES.parse(text)
    if text.count(CALL_OPEN) == text.count(CALL_CLOSE) == 1:
        assert (turn.call, turn.thought) == (call, "so:")
    else:
        assert turn.call is None
