"""Answers in text: in every format, and through one chat template of each family in TRL's package."""

from typing import Any

import pytest

from play_fixtures import GET
from scripts.chat_template_table import FOLDER, TALK, TOOLS, make_tokenizer
from steptool.chat.call_format import ParsedTurn, offer_tools, to_finish_calls, to_text_answers
from steptool.chat.codec import ChatCodec
from steptool.chat.formats import FORMATS, GPT_OSS, HERMES
from steptool.chat.messages import FINISH_SCHEMA, annotate_tool, make_call_message, make_tool_message
from steptool.records import Message, ToolCall

READ = ToolCall("get", {"key": "a"})
SEVEN = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"})

NAMES = ["deepseekv3", "gemma", "glm4moe", "gptoss", "llama3_1", "nemotron_3_nano", "qwen2_5", "qwen3", "qwen3_5_think"]


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_written_and_read_and_the_user_goes_on(name: str) -> None:
    codec = ChatCodec(make_tokenizer((FOLDER / f"{name}.jinja").read_text()))
    wish: Message = {"role": "user", "content": "And order 8?"}
    in_text = to_text_answers([*TALK, wish, TALK[-1]], codec.format.render_answer)
    lesson = codec.encode(in_text, TOOLS[:1])
    spans = [lesson.input_ids[start:end].tolist() for start, end in lesson.spans]
    answers = [codec.parse(ids, TOOLS).answer for ids in spans]
    assert answers == [None, "It is shipped.", "It is shipped."]
    assert all(ids[-1] in codec.end_ids for ids in spans)
    between = lesson.input_ids[lesson.spans[1][1] : lesson.spans[2][0]].tolist()
    assert between == codec.user_ids("And order 8?") and "And order 8?" in codec.tokenizer.decode(between)
    assert "Finish" not in codec.tokenizer.decode(lesson.input_ids)


def test_an_answer_of_glm_ends_where_the_user_begins_and_a_call_where_the_tool_does() -> None:
    codec = ChatCodec(make_tokenizer((FOLDER / "glm4moe.jinja").read_text()))
    wish: Message = {"role": "user", "content": "And order 8?"}
    lesson = codec.encode(to_text_answers([*TALK, wish, TALK[-1]]), TOOLS[:1])
    text = codec.tokenizer.decode(lesson.input_ids)
    assert "</tool_call><|observation|>\n<tool_response>" in text
    assert "It is shipped.<|user|>\nAnd order 8?<|assistant|>" in text and text.endswith("It is shipped.<|user|>")
    ends = {codec.tokenizer.convert_tokens_to_ids(token) for token in ("<|user|>", "<|observation|>")}
    assert ends <= codec.end_ids
    cut_off = codec.user_ids("And order 8?", closed=False)
    assert codec.tokenizer.decode(cut_off) == "<|user|>\nAnd order 8?<|assistant|>"


def test_which_tools_a_model_sees() -> None:
    assert offer_tools([FINISH_SCHEMA, GET], "text") == offer_tools([GET], "text") == [GET]
    assert offer_tools([FINISH_SCHEMA, GET], "tool") == [FINISH_SCHEMA, GET]
    assert offer_tools([GET], "tool") == [GET, FINISH_SCHEMA]


def test_conversations_are_told_in_text_and_with_finish() -> None:
    in_text: list[Message] = [
        {"role": "user", "content": "go"},
        make_call_message(SEVEN, "<think>\nhm\n</think>"),
        make_tool_message("Finish", ""),
        {"role": "user", "content": "And now?"},
        make_call_message(ToolCall("Finish", {"return_type": "give_answer"})),
        make_tool_message("Finish", '{"error": "final_answer is missing"}'),
        make_call_message(SEVEN, "These words would be a part of the answer."),
    ]
    text = to_text_answers(in_text)
    assert text == [
        in_text[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\n7"}, *in_text[3:6],
        {"role": "assistant", "content": "7"},
    ]  # fmt: skip
    assert to_finish_calls([in_text[0], text[-1]]) == [
        in_text[0],
        make_call_message(SEVEN),
        make_tool_message("Finish", ""),
    ]


def test_a_finish_after_which_the_assistant_goes_on_stays_a_call_that_failed() -> None:
    """Without Finish among the tools a call of it is answered as that of any unknown tool."""
    failed = [make_call_message(SEVEN), make_tool_message("Finish", '{"error": "unknown tool Finish"}')]
    answer: Message = {"role": "assistant", "content": "7"}
    assert to_text_answers([*failed, *failed, answer]) == [*failed, *failed, answer]
    assert to_text_answers([*failed, make_call_message(SEVEN)]) == [*failed, answer]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_every_format_carries_an_answer(form: Any) -> None:
    for answer in ("7", "", "Two lines:\nAction: none\nObservation: none"):
        turn = form.parse(form.render_answer(f" {answer}\n", "I know."))
        assert (turn.call, turn.answer) == (None, answer)
    with pytest.raises(ValueError, match="cannot carry the answer"):
        form.render_answer(f"{form.render(READ)}")


def test_an_answer_of_gpt_oss_stands_in_its_final_channel() -> None:
    thought = "<|channel|>analysis<|message|>7?<|end|><|start|>assistant"
    assert GPT_OSS.parse(f"{thought}<|channel|>final<|message|>7").answer == "7"
    assert GPT_OSS.parse("<|channel|>analysis<|message|>7?").answer is None


def test_thinking_without_an_end_is_no_answer() -> None:
    assert HERMES.parse("<think>\n7") == ParsedTurn(None, "<think>\n7", "thinking not closed")


def test_a_prompt_holds_no_hints_since_a_served_model_gets_none() -> None:
    codec = ChatCodec(make_tokenizer((FOLDER / "qwen2_5.jinja").read_text()))
    user: Message = {"role": "user", "content": "go"}
    assert codec.prompt_ids([user], [annotate_tool(GET, True)]) == codec.prompt_ids([user], [GET])
