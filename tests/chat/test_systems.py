"""System and developer messages through chat templates of TRL's package: in their place, or as the fallback says."""

import pytest

from scripts.chat_template_table import FOLDER, make_tokenizer
from steptool.chat.codec import ChatCodec
from steptool.records import Message

ALPHA, BETA = ({"role": "system", "content": text} for text in ("Alpha", "Beta"))
GO, NEXT = ({"role": "user", "content": text} for text in ("Go", "Next"))
SPOKEN: Message = {"role": "assistant", "content": "Done"}


def codec_of(name: str) -> ChatCodec:
    return ChatCodec(make_tokenizer((FOLDER / f"{name}.jinja").read_text()))


def prompt(codec: ChatCodec, *messages: Message) -> str:
    text: str = codec.tokenizer.decode(codec.prompt_ids(messages, []))
    return text


def between(codec: ChatCodec, *messages: Message) -> str:
    """What stands between two turns."""
    lesson = codec.encode([GO, SPOKEN, *messages, SPOKEN], [])
    text: str = codec.tokenizer.decode(lesson.input_ids[lesson.spans[0][1] : lesson.spans[1][0]])
    return text


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "nemotron_3_nano"])
def test_a_template_that_takes_system_messages_anywhere_gets_them_in_their_place(name: str) -> None:
    codec = codec_of(name)
    whole = prompt(codec, ALPHA, BETA, GO)
    assert whole.index("Alpha") < whole.index("Beta") < whole.index("Go") and "Alpha\n\nBeta" not in whole
    later = between(codec, BETA, NEXT)
    assert later.count("system") == 1 and later.index("system") < later.index("Beta") < later.index("Next")


@pytest.mark.parametrize("name", ["qwen3_5_think", "gemma3", "cohere", "gptoss"])
def test_several_become_one_where_the_template_takes_one_and_a_late_one_is_said_by_the_user(name: str) -> None:
    codec = codec_of(name)
    assert "Alpha\n\nBeta" in prompt(codec, ALPHA, BETA, GO)
    assert between(codec, BETA, NEXT) == between(codec, {"role": "user", "content": "Beta\n\nNext"})
    assert between(codec, NEXT, BETA) == between(codec, {"role": "user", "content": "Next\n\nBeta"})


def test_a_template_without_system_messages_lets_the_user_say_them() -> None:
    codec = codec_of("gemma")
    assert prompt(codec, ALPHA, BETA, GO) == prompt(codec, {"role": "user", "content": "Alpha\n\nBeta\n\nGo"})


def test_a_template_that_moves_system_messages_to_the_top_does_not_get_late_ones() -> None:
    codec = codec_of("deepseekv3")
    assert between(codec, BETA, NEXT) == between(codec, {"role": "user", "content": "Beta\n\nNext"})


def test_a_developer_stays_one_where_the_template_knows_developers() -> None:
    codec = codec_of("gptoss")
    developer: Message = {"role": "developer", "content": "Alpha"}
    assert "<|start|>developer<|message|># Instructions\n\nAlpha" in prompt(codec, developer, GO)
    qwen = codec_of("qwen2_5")
    assert prompt(qwen, developer, GO) == prompt(qwen, ALPHA, GO)
