from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steptool.chat import codec as codec_module
from steptool.chat.codec import ChatCodec
from steptool.chat.messages import FINISH_SCHEMA, make_call_message
from steptool.records import Message, ToolCall

OURS = Path(codec_module.__file__).parent / "templates"
THEIRS = Path(trl.__file__).parent / "chat_templates"
MARKS = ["<pad>", "<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
MARKS += ["<tool_call>", "</tool_call>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    )
    result = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<|begin_of_text|>")
    result.chat_template = template
    return result


def template(name: str) -> str:
    path = next((folder / f"{name}.jinja" for folder in (OURS, THEIRS) if (folder / f"{name}.jinja").is_file()), None)
    if path is None:
        pytest.skip(f"no template {name} here")
    return path.read_text()


HERMES = template("hermes")
TALK: list[Message] = [
    {"role": "user", "content": "where is order 7?"},
    make_call_message(ToolCall("get_order", {"id": 7}), "let me see"),
    {"role": "tool", "name": "get_order", "content": '{"state": "shipped"}'},
    make_call_message(ToolCall("Finish", {"return_type": "give_answer", "final_answer": "shipped é"})),
]
RESPONSE = (
    '\n<|im_start|>user\n<tool_response>\n{"state": "shipped"}\n</tool_response><|im_end|>\n<|im_start|>assistant\n'
)


@pytest.mark.parametrize(
    ("name", "end", "between"),
    [
        ("compact", "<|end|>", '<|tool|>{"state": "shipped"}<|end|><|assistant|>'),
        ("signatures", "<|im_end|>", '\n<|im_start|>tool\n{"state": "shipped"}<|im_end|>\n<|im_start|>assistant\n'),
        (
            "hermes",
            "<|im_end|>",
            RESPONSE,
        ),
        (
            "qwen2_5",
            "<|im_end|>",
            RESPONSE,
        ),
        (
            "qwen3",
            "<|im_end|>",
            RESPONSE,
        ),
        (
            "llama3_1",
            "<|eot_id|>",
            '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"state\\": \\"shipped\\"}"<|eot_id|>'
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_a_conversation_is_cut_into_its_turns(name: str, end: str, between: str) -> None:
    tok = tokenizer(template(name))
    codec = ChatCodec(tok)
    encoded = codec.encode(TALK, [FINISH_SCHEMA])
    (start, stop), (start2, stop2) = encoded.spans
    ids = encoded.input_ids
    assert codec.end_ids == {tok.convert_tokens_to_ids(end)}
    assert ids[:start].tolist() == codec.prompt_ids(TALK[:1], [FINISH_SCHEMA])
    assert tok.decode(ids[stop:start2]) == between
    assert ids[stop:start2].tolist() == codec.observation_ids('{"state": "shipped"}', "get_order")
    assert ids[stop - 1] == ids[stop2 - 1] == codec.end_id
    assert stop2 == len(ids)
    assert codec.parse(ids[start:stop]).call == ToolCall("get_order", {"id": 7})
    assert codec.parse(ids[start2:stop2].tolist()).call == ToolCall(
        "Finish", {"return_type": "give_answer", "final_answer": "shipped é"}
    )


@pytest.mark.parametrize("name", ["compact", "signatures", "hermes", "qwen2_5"])
def test_the_turns_joined_are_the_rendered_conversation(name: str) -> None:
    tok = tokenizer(template(name))
    encoded = ChatCodec(tok).encode(TALK, [FINISH_SCHEMA])
    whole = tok.apply_chat_template(TALK, tools=[FINISH_SCHEMA], tokenize=False)
    assert whole.rstrip("\n") == tok.decode(encoded.input_ids)


def test_a_template_of_signatures_names_parameters_alone() -> None:
    tok = tokenizer(template("signatures"))
    prompt = tok.decode(ChatCodec(tok).prompt_ids(TALK[:1], [FINISH_SCHEMA]))
    assert prompt == (
        "<|im_start|>system\nTools: Finish(return_type, final_answer)<|im_end|>\n"
        "<|im_start|>user\nwhere is order 7?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_developer_keeps_its_role_where_the_template_knows_it() -> None:
    user = {"role": "user", "content": "go"}
    system, developer = ({"role": role, "content": "Be brief."} for role in ("system", "developer"))
    codec = ChatCodec(tokenizer(HERMES))
    assert codec.prompt_ids([developer, user], []) == codec.prompt_ids([system, user], [])
    knowing = ChatCodec(tokenizer(HERMES + "{#- -#}{%- if messages[0].role == 'developer' -%}{%- endif -%}"))
    text = knowing.tokenizer.decode(knowing.prompt_ids([developer, user], []))
    assert text.startswith("<|im_start|>developer\nBe brief.<|im_end|>")


def test_the_next_prompt_goes_on_from_the_tokens_that_were_sampled() -> None:
    codec = ChatCodec(tokenizer(HERMES))
    call = make_call_message(ToolCall("get", {"key": "a"}))
    talk: list[Message] = [{"role": "user", "content": "go"}, call, {"role": "tool", "name": "get", "content": "7"}]
    spaced = codec.tokenizer.encode('<tool_call> {"name": "get", "arguments": {"key": "a"}}</tool_call><|im_end|>')
    assert codec.parse(spaced).call == ToolCall("get", {"key": "a"})
    before, after = codec.prompt_ids(talk[:1], []), codec.observation_ids("7", "get")
    assert codec.next_prompt_ids(talk, [], {1: spaced}) == [*before, *spaced, *after]
    assert codec.next_prompt_ids(talk, [], {1: spaced[:-1]}) == [*before, *spaced, *after]
    assert codec.next_prompt_ids(talk, [], {}) == [*before, *codec.assistant_ids(call), *after]


def test_a_turn_that_was_cut_off_is_closed_first() -> None:
    codec = ChatCodec(tokenizer(HERMES))
    assert codec.observation_ids("x", "f", closed=False) == [codec.end_id, *codec.observation_ids("x", "f")]


def test_parsing_keeps_the_call_marks_and_strips_the_end() -> None:
    tok = tokenizer(HERMES)
    codec = ChatCodec(tok)
    ids = tok.encode('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    assert codec.parse([*ids, codec.end_id]) == codec.parse(ids)
    assert codec.parse(ids).text == '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert codec.parse([]).problem == "no tool call"


@settings(max_examples=50, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*MARKS, "a", " ", "\n", "é"]), max_size=6).map("".join))
def test_no_observation_ends_a_turn_or_opens_a_call(observation: str) -> None:
    tok = CODEC.tokenizer
    plain = CODEC.observation_ids("", "f")
    special = set(tok.convert_tokens_to_ids(MARKS))
    ids = CODEC.observation_ids(observation, "f")
    assert [i for i in ids if i in special] == [i for i in plain if i in special]


CODEC = ChatCodec(tokenizer(HERMES))


@given(st.lists(st.integers(0, len(CODEC.tokenizer) - 1), max_size=30))
def test_any_tokens_can_be_parsed(ids: list[int]) -> None:
    turn = CODEC.parse(np.asarray(ids, dtype=np.int32))
    assert (turn.call is None) == bool(turn.problem)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: "", "no chat template"),
        (lambda t: t.replace("message.tool_calls", "message.nothing"), "does not render tool calls"),
        (lambda t: t.replace("<tool_response>\\n' + message.content", "' + ''"), "does not render tool messages"),
        (
            lambda t: t.replace("<|im_end|>", "."),
            "must end an assistant turn with one special token",
        ),
        (lambda t: t.replace("message.role + '\\n'", "message.role + ':'"), "no prompt is a prefix"),
        (lambda t: "{{ raise_exception('no roles here') }}", "no roles here"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(change: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ChatCodec(tokenizer(change(HERMES)))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (TALK[:1], "needs an assistant message"),
        ([TALK[0], TALK[1], TALK[3]], "side by side"),
        ([{"role": "user", "content": None}, TALK[1]], "user message needs text"),
        ([TALK[0], {**TALK[1], "tool_calls": TALK[1]["tool_calls"] * 2}], "one call, got 2"),
    ],
)
def test_conversations_that_cannot_be_cut_are_refused(messages: list[Message], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CODEC.encode(messages, [])
