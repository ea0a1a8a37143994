"""Calls as models write them: several in one text, gpt-oss' channels, and arguments in other forms."""

from pathlib import Path
from typing import Any

import pytest

from steptool.chat.call_format import Format
from steptool.chat.formats import DEEPSEEK, GLM, LLAMA, MISTRAL, QWEN_XML
from steptool.data.parsing import Record, UnusableError
from steptool.data.recordings.forms import read_recording
from steptool.data.recordings.recording import make_query, make_trajectory
from steptool.records import StepStatus, ToolCall, ToolSchema, Trajectory


def tool(name: str) -> ToolSchema:
    parameters = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


TOOLS = [tool("tides"), tool("waves")]
CALLS = [ToolCall("tides", {"town": "Bath"}), ToolCall("waves", {"town": "1842"})]


def no_tools() -> tuple[ToolSchema, ...]:
    raise UnusableError("missing field 'tools'", "there are none")


def read(*messages: dict[str, Any]) -> Trajectory:
    value = {"messages": [{"role": "user", "content": "When is high water?"}, *messages], "tools": TOOLS}
    recording = read_recording(Record(Path("logs/may.jsonl"), 3, value), no_tools)
    return make_trajectory(recording.turns, None, make_query(recording), 0)


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **fields}


def written(form: Format) -> str:
    """Both calls in one text, as the family's template prints a turn with two."""
    first, second = (form.render(call, thought, TOOLS) for call, thought in zip(CALLS, ("I look.", ""), strict=True))
    if form is DEEPSEEK:
        return first.removesuffix("<｜tool▁calls▁end｜>") + "\n" + second.removeprefix("<｜tool▁calls▁begin｜>")
    if form is MISTRAL:
        return first.removesuffix("]") + ", " + second.removeprefix("[TOOL_CALLS] [")
    return first + ("; " if form is LLAMA else "\n") + second


@pytest.mark.parametrize("form", [QWEN_XML, GLM, DEEPSEEK, MISTRAL, LLAMA], ids=lambda form: form.name)
def test_several_calls_in_one_text_are_steps_with_their_responses(form: Format) -> None:
    responses = [answer("2 m", name="waves"), answer("9:12", name="tides")]
    trajectory = read(assistant(written(form)), *responses, assistant("At 9:12."))
    assert [(step.call, step.observation) for step in trajectory.steps[:2]] == list(
        zip(CALLS, ("9:12", "2 m"), strict=True)
    )
    assert trajectory.messages[1]["content"] == "I look." and trajectory.final_answer == "At 9:12."


def test_several_calls_of_newer_mistral_models_are_read() -> None:
    text = 'I look.[TOOL_CALLS]tides[ARGS]{"town": "Bath"}[TOOL_CALLS]waves[ARGS]{"town": "1842"}'
    trajectory = read(assistant(text), answer("9:12"), answer("2 m"), assistant("At 9:12."))
    assert [step.call for step in trajectory.steps[:2]] == CALLS


def test_one_unreadable_call_among_several_is_no_answer_of_the_wrong_tool() -> None:
    text = QWEN_XML.render(CALLS[0], "", TOOLS) + "\n<tool_call>\n<function=waves>\n</tool_call>"
    with pytest.raises(UnusableError, match="a response without a call"):
        read(assistant(text), answer("9:12"), answer("2 m"), assistant("At 9:12."))


HARMONY = (
    "<|channel|>analysis<|message|>The tides know.<|end|><|start|>assistant<|channel|>commentary to=functions.tides "
    '<|constrain|>json<|message|>{"town": "Bath"}<|call|>'
)


@pytest.mark.parametrize(
    "text",
    [
        HARMONY,
        HARMONY.removesuffix("<|call|>"),
        HARMONY.replace(
            "<|channel|>commentary to=functions.tides <|constrain|>json",
            " to=functions.tides<|channel|>commentary json",
        ),
    ],
)
def test_channels_of_gpt_oss_are_thought_call_and_answer(text: str) -> None:
    last = "<|channel|>analysis<|message|>Now I know.<|end|>"
    last += "<|start|>assistant<|channel|>final<|message|>At 9:12.<|return|>"
    trajectory = read(assistant(text), answer("9:12"), assistant(last))
    assert trajectory.steps[0].call == CALLS[0] and trajectory.steps[0].observation == "9:12"
    assert trajectory.messages[1]["content"] == "<think>\nThe tides know.\n</think>"
    assert trajectory.final_answer == "At 9:12."
    assert trajectory.messages[-1]["content"] == "<think>\nNow I know.\n</think>"


CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "function": {"name": "tides", "arguments": '{"town": "Bath"}'}}],
}
BLOCK = {"type": "tool_result", "tool_use_id": "c", "content": "no such town", "is_error": True}
FAILURES: dict[str, list[dict[str, Any]]] = {
    "a mark beside the answer": [CALL, answer("no such town", tool_call_id="c", is_error=True)],
    "a status beside the answer": [CALL, answer("no such town", tool_call_id="c", status="error")],
    "a status in the answer": [CALL, answer('{"status": "error", "message": "no such town"}', tool_call_id="c")],
    "success in the answer": [CALL, answer('{"success": false, "reason": "no such town"}', tool_call_id="c")],
    "an error in the answer": [CALL, answer('{"error": "no such town"}', tool_call_id="c")],
    "Anthropic": [CALL, {"role": "user", "content": [BLOCK]}],
    "MCP": [
        CALL,
        {
            "role": "tool",
            "tool_call_id": "c",
            "content": {"content": [{"type": "text", "text": "no such town"}], "isError": True},
        },
    ],
    "MCP as text": [
        CALL,
        answer('{"content": [{"type": "text", "text": "no such town"}], "isError": true}', tool_call_id="c"),
    ],
    "OpenAI responses": [
        {"type": "function_call", "call_id": "c", "name": "tides", "arguments": '{"town": "Bath"}'},
        {"type": "function_call_output", "call_id": "c", "output": "no such town", "status": "failed"},
    ],
    "Hermes": [
        assistant('<tool_call>{"name": "tides", "arguments": {"town": "Bath"}}</tool_call>'),
        answer("<tool_response>no such town</tool_response>", is_error=True),
    ],
}


@pytest.mark.parametrize("form", FAILURES)
def test_a_tool_that_says_that_it_failed_is_a_failed_step(form: str) -> None:
    first = read(*FAILURES[form], assistant("I cannot say.")).steps[0]
    assert first.status is StepStatus.TOOL_ERROR and "no such town" in first.observation


def test_the_mark_of_an_answer_survives_sharegpt() -> None:
    turns = [
        {"from": "human", "value": "When is high water?"},
        {"from": "function_call", "value": '{"name": "tides", "arguments": {"town": "Bath"}}'},
        {"from": "observation", "value": "no such town", "is_error": True},
        {"from": "gpt", "value": "I cannot say."},
    ]
    recording = read_recording(Record(Path("may.jsonl"), 3, {"conversations": turns, "tools": TOOLS}), no_tools)
    trajectory = make_trajectory(recording.turns, None, make_query(recording), 0)
    assert trajectory.steps[0].status is StepStatus.TOOL_ERROR


@pytest.mark.parametrize(
    "fields",
    [{"is_error": False}, {"isError": None}, {"status": "success"}, {"status": 404}, {"success": True}, {"ok": "no"}],
)
def test_marks_of_success_and_other_values_leave_a_step_as_it_is(fields: dict[str, Any]) -> None:
    step = read(CALL, answer("high water at 9:12", tool_call_id="c", **fields), assistant("At 9:12.")).steps[0]
    assert step.status is StepStatus.OK


@pytest.mark.parametrize("arguments", ["{'town': 'Bath'}", '"{\\"town\\": \\"Bath\\"}"', '{"town": "Bath"}'])
def test_arguments_are_read_as_other_writers_write_them(arguments: str) -> None:
    """As the text of a Python dict, and as JSON in JSON."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "tides", "arguments": arguments}}]}
    assert read(call, answer("9:12")).steps[0].call == CALLS[0]
