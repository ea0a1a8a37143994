"""The formats of Qwen 3.5, GLM, DeepSeek, gpt-oss and Mistral: real turns of these models, read and refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.chat.call_format import Format
from steptool.chat.formats import DEEPSEEK, GLM, GPT_OSS, MISTRAL, QWEN_XML
from steptool.records import ToolCall, ToolSchema

FIND: ToolSchema = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "limit": {"type": "integer"},
                "open": {"type": "boolean"},
                "where": {"type": "object"},
                "since": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        },
    },
}
CALL = ToolCall("find", {"name": "7", "limit": 7})
QWEN_TEXT = """<tool_call>
<function=find>
<parameter=name>
7
</parameter>
<parameter=limit>
7
</parameter>
</function>
</tool_call>"""
GLM_TEXT = """<tool_call>find
<arg_key>name</arg_key>
<arg_value>7</arg_value>
<arg_key>limit</arg_key>
<arg_value>7</arg_value>
</tool_call>"""
V3_TEXT = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n"
    '{"name": "7", "limit": 7}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
V31_TEXT = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>"
    '{"name": "7", "limit": 7}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
OSS_TEXT = ' to=functions.find<|channel|>commentary json<|message|>{"name": "7", "limit": 7}'
OSS_OTHER = '<|channel|>commentary to=functions.find <|constrain|>json<|message|>{"name": "7", "limit": 7}'
OSS_THOUGHT = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant"
LIST_TEXT = '[TOOL_CALLS] [{"name": "find", "arguments": {"name": "7", "limit": 7}, "id": "abcdefghi"}]'
ARGS_TEXT = '[TOOL_CALLS]find[ARGS]{"name": "7", "limit": 7}'
ID_TEXT = '[TOOL_CALLS]find[CALL_ID]abcdefghi[ARGS]{"name": "7", "limit": 7}'


@pytest.mark.parametrize(
    ("form", "text", "thought"),
    [
        (QWEN_XML, QWEN_TEXT, ""),
        (QWEN_XML, f"<think>\nhm\n</think>\n\nLook.\n\n{QWEN_TEXT}\n", "<think>\nhm\n</think>\n\nLook."),
        (GLM, GLM_TEXT, ""),
        (GLM, f"\n<think></think>\nLook.\n{GLM_TEXT}", "<think></think>\nLook."),
        (DEEPSEEK, V3_TEXT, ""),
        (DEEPSEEK, f"Look.{V31_TEXT}", "Look."),
        (GPT_OSS, OSS_TEXT, ""),
        (GPT_OSS, OSS_OTHER, ""),
        (GPT_OSS, f"{OSS_THOUGHT}{OSS_TEXT}", "Look."),
        (GPT_OSS, f"{OSS_THOUGHT}{OSS_OTHER}", "Look."),
        (MISTRAL, LIST_TEXT, ""),
        (MISTRAL, f"Look.{ARGS_TEXT}", "Look."),
        (MISTRAL, ID_TEXT, ""),
    ],
)
def test_a_turn_of_the_model_is_read(form: Format, text: str, thought: str) -> None:
    turn = form.parse(text, [FIND])
    assert (turn.call, turn.thought, turn.problem) == (CALL, thought, "")


@pytest.mark.parametrize(
    ("form", "text", "problem"),
    [
        (QWEN_XML, "<tool_call>find()</tool_call>", "without <function=name>"),
        (QWEN_XML, "<tool_call>\n<function=find>\nname=7\n</function>\n</tool_call>", "besides its parameters"),
        (QWEN_XML, QWEN_TEXT.removesuffix("</tool_call>"), "not closed"),
        (QWEN_XML, QWEN_TEXT + QWEN_TEXT, "more than one"),
        (QWEN_XML, QWEN_TEXT + " done", "text after"),
        (QWEN_XML, f"<tool_response>\n7\n</tool_response>\n{QWEN_TEXT}", "response before"),
        (GLM, "<tool_call></tool_call>", "without name"),
        (GLM, "<tool_call>find 7</tool_call>", "besides its arguments"),
        (GLM, GLM_TEXT * 2, "more than one"),
        (DEEPSEEK, V3_TEXT.removesuffix("<｜tool▁calls▁end｜>"), "not closed"),
        (DEEPSEEK, V3_TEXT + " done", "text after"),
        (DEEPSEEK, "<｜tool▁call▁begin｜>find<｜tool▁call▁end｜>", "without <｜tool▁sep｜>"),
        (GPT_OSS, "<|channel|>final<|message|>It is 7.", "no tool call"),
        (GPT_OSS, f"{OSS_TEXT}<|end|><|start|>assistant<|channel|>final<|message|>done", "text after"),
        (GPT_OSS, f"{OSS_TEXT}<|call|><|start|>assistant{OSS_TEXT}", "more than one"),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', "more than one"),
        (MISTRAL, '[TOOL_CALLS] {"name": "f", "arguments": {}}', "not a list"),
        (MISTRAL, "It is 7.", "no tool call"),
    ],
)
def test_other_text_is_no_call_and_says_why(form: Format, text: str, problem: str) -> None:
    turn = form.parse(text, [FIND])
    assert turn.call is None and problem in turn.problem


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "7", "7"),
        ("name", '"7"', '"7"'),
        ("name", "null", "null"),
        ("limit", "7", 7),
        ("limit", "many", "many"),  # fails the schema later, with the tool's own message
        ("open", "True", True),
        ("open", "false", False),
        ("where", '{"a": [1]}', {"a": [1]}),
        ("since", "null", None),
        ("since", "yesterday", "yesterday"),
        ("since", '"7"', '"7"'),
        ("unknown", "7", 7),
        ("unknown", "seven", "seven"),
    ],
)
@pytest.mark.parametrize("form", [QWEN_XML, GLM], ids=["qwen_xml", "glm"])
def test_bare_text_has_the_type_of_the_schema(form: Format, name: str, text: str, value: Any) -> None:
    call = form.parse(form.write(ToolCall("find", {name: text}), ""), [FIND]).call
    assert call is not None and call.arguments == {name: value} and type(call.arguments[name]) is type(value)


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(),
        "limit": st.integers(),
        "open": st.booleans(),
        "where": st.dictionaries(st.text(), st.none() | st.integers() | st.text()),
    },
)


@pytest.mark.parametrize("form", [QWEN_XML, GLM], ids=["qwen_xml", "glm"])
@given(arguments=VALUES)
def test_a_call_that_fits_its_schema_comes_back_or_is_refused(form: Format, arguments: dict[str, Any]) -> None:
    call = ToolCall("find", arguments)
    try:
        text = form.render(call, tools=[FIND])
    except ValueError as error:
        assert "cannot carry" in str(error) or "out of range" in str(error) or "not a JSON value" in str(error)
        assert any(c in str(arguments) for c in "<\\\n\r")
    else:
        assert form.parse(text, [FIND]).call == call


FORMS = [QWEN_XML, GLM, DEEPSEEK, GPT_OSS, MISTRAL]
BITS = [mark for form in FORMS for mark in form.marks] + [QWEN_TEXT, GLM_TEXT, V3_TEXT, OSS_TEXT, LIST_TEXT, ARGS_TEXT]
BITS += ["<function=find>", "<parameter=name>", "to=functions.find", "{}", "[{", '"', "\n", "<think>", "</think>", "a"]


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
@given(text=st.lists(st.sampled_from(BITS) | st.text(max_size=3), max_size=8).map("".join))
def test_no_text_raises(form: Format, text: str) -> None:
    turn = form.parse(text, [FIND])
    assert (turn.call is None) == bool(turn.problem)
    if turn.call:
        assert turn.call.name in text
