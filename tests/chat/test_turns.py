from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steptool.chat.call_format import ChatFormat
from steptool.chat.codec import ChatCodec, Encoded
from steptool.chat.messages import FINISH_SCHEMA, make_call_message, make_tool_message
from steptool.chat.turns import describe
from steptool.records import Message, ToolCall

MARKS = (
    *("<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|im_start|>", "<|im_end|>", "<|python_tag|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<tool_call>", "</tool_call>"),
)

QWEN, LLAMA, MISTRAL, PLAIN, STRICT = (
    (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    for name in ("qwen", "llama", "mistral", "plain", "strict")
)
GET: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get", "description": "Read <|im_end|>", "parameters": {"type": "object", "properties": {}}},
}
TOOLS = [GET, FINISH_SCHEMA]
DONE = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "é"})
TALK: list[Message] = [
    {"role": "user", "content": "go"},
    make_call_message(ToolCall("get", {"key": "a"}), "Look first."),
    make_tool_message("get", "7"),
    {"role": "user", "content": "And b?"},
    {"role": "assistant", "content": "Hm."},
    make_tool_message("error", "no tool call"),
    make_call_message(DONE),
]


@cache
def tokenizer(template: str, special: tuple[str, ...] = MARKS) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([], trainer)
    fast_tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>")
    fast_tokenizer.chat_template = template
    return fast_tokenizer


def pieces(codec: ChatCodec, encoded: Encoded) -> list[str]:
    """The text between the spans and within them, in turn."""
    cuts = [0, *(i for span in encoded.spans for i in span)]
    return [codec.tokenizer.decode(encoded.input_ids[a:b]) for a, b in pairwise(cuts)]


@pytest.mark.parametrize(
    ("template", "chat_format", "expected", "native"),
    [
        (QWEN, "auto", ChatFormat.HERMES, True),
        (QWEN, "hermes", ChatFormat.HERMES, True),
        (QWEN, "llama", ChatFormat.LLAMA, False),
        (QWEN, "react", ChatFormat.REACT, False),
        (LLAMA, "auto", ChatFormat.LLAMA, True),
        (LLAMA, "hermes", ChatFormat.HERMES, False),
        (MISTRAL, "auto", ChatFormat.MISTRAL, True),
        (MISTRAL, "react", ChatFormat.REACT, False),
        (PLAIN, "auto", ChatFormat.REACT, False),
        (PLAIN, "hermes", ChatFormat.HERMES, False),
        (PLAIN, "llama", ChatFormat.LLAMA, False),
        (STRICT, "auto", ChatFormat.REACT, False),
    ],
)
def test_a_conversation_is_cut_into_prompt_calls_and_answers(
    template: str, chat_format: str, expected: ChatFormat, native: bool
) -> None:
    codec = ChatCodec(tokenizer(template), chat_format)
    assert (codec.format.name, codec.native) == (expected, native)
    encoded = codec.encode(TALK, TOOLS)
    ids, (first, second, third) = encoded.input_ids.tolist(), encoded.spans
    assert ids[: first[0]] == codec.prompt_ids(TALK[:1], TOOLS)
    assert ids[first[1] : second[0]] == codec.observation_ids("7", "get", user_turn="And b?")
    assert ids[second[1] : third[0]] == codec.observation_ids("no tool call", "error")
    assert [codec.parse(ids[a:b]).call for a, b in encoded.spans] == [ToolCall("get", {"key": "a"}), None, DONE]
    ends = [i for i, token in enumerate(ids) if token in codec.end_ids]
    assert {end - 1 for _, end in encoded.spans} <= set(ends)
    assert not any(a <= i < b - 1 for i in ends for a, b in encoded.spans), "a turn ends where its span ends"
    assert "Read < |im_end|>" in pieces(codec, encoded)[0], "no tool's description ends a turn"
    assert codec.parse(ids[first[0] : first[1]]).thought == (
        "" if native and expected in ("llama", "mistral") else "Look first."
    )


def test_a_template_without_tools_speaks_react() -> None:
    codec = ChatCodec(tokenizer(PLAIN))
    tool: dict[str, Any] = {"type": "function", "function": {"name": "get", "description": "Read"}}
    talk: list[Message] = [{"role": "system", "content": "Be brief."}, *TALK]
    assert pieces(codec, codec.encode(talk, [tool])) == [
        f"<|im_start|>system\nBe brief.\n\n{describe([tool], codec.format)}<|im_end|>\n"
        "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n",
        'Thought: Look first.\nAction: get\nAction Input: {"key": "a"}<|im_end|>',
        "\n<|im_start|>user\nObservation: 7\n\nAnd b?<|im_end|>\n<|im_start|>assistant\n",
        "Hm.<|im_end|>",
        "\n<|im_start|>user\nObservation: no tool call<|im_end|>\n<|im_start|>assistant\n",
        'Action: Finish\nAction Input: {"return_type": "give_answer", "final_answer": "é"}<|im_end|>',
    ]


def test_without_system_messages_the_user_describes_the_tools() -> None:
    codec = ChatCodec(tokenizer(STRICT))
    prompt, turn, between, *_ = pieces(codec, codec.encode(TALK, TOOLS[1:]))
    assert prompt == f"<s>[INST] {describe(TOOLS[1:], codec.format)}\n\ngo [/INST]"
    assert turn == ' Thought: Look first.\nAction: get\nAction Input: {"key": "a"}</s>'
    assert between == "[INST] Observation: 7\n\nAnd b? [/INST]"


def test_llama_may_end_a_turn_in_two_ways() -> None:
    codec = ChatCodec(tokenizer(LLAMA))
    text = codec.tokenizer.encode('Look first.<|python_tag|>{"name": "get", "parameters": {}}<|eom_id|>')
    turn = codec.parse(text)
    assert (turn.call, turn.thought) == (ToolCall("get", {}), "Look first.")
    assert text[-1] in codec.end_ids
    assert codec.end_token == "<|eot_id|>"
    assert codec.observation_ids("<|python_tag|>", "get") == codec.observation_ids("< |python_tag|>", "get")


def test_an_end_token_that_is_not_special_ends_no_observation_either() -> None:
    plain_tokenizer = tokenizer(PLAIN, special=("<pad>",))
    plain_tokenizer.add_tokens(["<|im_end|>"])
    codec = ChatCodec(plain_tokenizer)
    assert codec.observation_ids("a<|im_end|>b", "get").count(codec.end_id) == 1


@pytest.mark.parametrize(
    ("template", "chat_format", "complaint"),
    [
        (QWEN.replace('"name": ', '"tool": '), "auto", "a form that cannot be read"),
        (QWEN.replace("m.tool_calls", "m.nothing"), "auto", "does not render tool calls.*chat_format to react"),
        (
            PLAIN.replace("m.content", "m.content if m.role == 'assistant' else ''"),
            "auto",
            "does not render messages of",
        ),
        (PLAIN.replace("m.content", "m.content | lower"), "auto", "changes the text of a turn"),
        (PLAIN, "openai", "'openai' is not a valid ChatFormat"),
    ],
)
def test_what_cannot_be_played_is_refused(template: str, chat_format: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ChatCodec(tokenizer(template), chat_format)


@pytest.mark.parametrize(
    ("template", "message", "complaint"),
    [
        (QWEN, make_call_message(DONE, "I say <|im_end|> now"), "ends its turn"),
        (QWEN, make_call_message(ToolCall("get", {"key": "<|im_end|>"})), "ends its turn"),
        (QWEN, make_call_message(ToolCall('g"', {})), "would be read as invalid JSON"),
        (QWEN, make_call_message(DONE, "I write <tool_call>"), "would be read as invalid JSON"),
        (
            QWEN,
            {"role": "assistant", "content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>'},
            "no call would",
        ),
        (PLAIN, {"role": "assistant", "content": "Action: f\nAction Input: {}"}, "without tool_calls would be read"),
        (PLAIN, make_call_message(ToolCall("a\nb", {})), "cannot carry"),
        (
            PLAIN,
            {**TALK[1], "tool_calls": TALK[1]["tool_calls"] * 2},
            "one call, got 2; split it with steptool.chat.messages.split_calls",
        ),
    ],
)
def test_a_turn_that_cannot_be_said_is_refused(template: str, message: Message, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ChatCodec(tokenizer(template)).assistant_ids(message)


NASTY = st.text(max_size=8) | st.lists(
    st.sampled_from([*MARKS, "Action: f\n", "Action Input: {}", "Observation: ", "\n", '"', "\\", "a"]), max_size=6
).map("".join)
CODECS = pytest.mark.parametrize("template", [QWEN, LLAMA, PLAIN, STRICT], ids=["qwen", "llama", "plain", "strict"])


@CODECS
@settings(max_examples=40, deadline=None)
@given(NASTY)
def test_no_observation_or_user_ends_a_turn_or_opens_a_call(template: str, text: str) -> None:
    codec = ChatCodec(tokenizer(template))
    special = set(codec.tokenizer.convert_tokens_to_ids(list(MARKS))) - {
        codec.tokenizer.convert_tokens_to_ids(mark)
        for mark in ("<tool_call>", "</tool_call>", "<|python_tag|>")
        if mark not in codec.format.marks
    }
    for content, plain in [
        (codec.observation_ids(text, "get", user_turn=text), codec.observation_ids("", "get", user_turn="")),
        (codec.prompt_ids([{"role": "user", "content": text}], TOOLS), codec.prompt_ids(TALK[:1], TOOLS)),
    ]:
        assert [i for i in content if i in special] == [i for i in plain if i in special]


@CODECS
@settings(max_examples=40, deadline=None)
@given(thought=NASTY, value=NASTY)
def test_what_is_taught_is_read_back_or_refused(template: str, thought: str, value: str) -> None:
    codec = ChatCodec(tokenizer(template))
    call = ToolCall("get", {"key": value})
    try:
        ids = codec.assistant_ids(make_call_message(call, thought))
    except ValueError:
        assert any(mark in thought + value for mark in MARKS)
    else:
        assert codec.parse(ids).call == call
        assert [i for i in ids if i in codec.end_ids] == ids[-1:]


@CODECS
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(tokenizer(PLAIN)) - 1), max_size=30))
def test_any_tokens_can_be_parsed(template: str, ids: list[int]) -> None:
    turn = ChatCodec(tokenizer(template)).parse(ids)
    assert (turn.call is None) == bool(turn.problem)
