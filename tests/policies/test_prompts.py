"""Episodes of a model whose chat template knows no tools."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from steptool.chat.codec import ChatCodec
from steptool.chat.formats import HERMES, REACT
from steptool.chat.messages import call_message, tool_message
from steptool.config import RolloutConfig
from steptool.records import StepStatus, StopReason, ToolCall, Trajectory

GET, LOST = ToolCall("get", {"key": "a"}), ToolCall("get", {"key": "c"})
EIGHT, SEVEN = (ToolCall("Finish", {"return_type": "give_answer", "final_answer": n}) for n in "87")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
S = StepStatus


@pytest.fixture(scope="module")
def plain(tokenizer: PreTrainedTokenizerBase) -> ChatCodec:
    made = copy.deepcopy(tokenizer)
    made.chat_template = CHATML
    return ChatCodec(made)


@pytest.fixture
def play(play_locally: Any) -> Callable[..., Trajectory]:
    def go(codec: ChatCodec, model: Any, query: Any, environment: Any) -> Trajectory:
        rollout = RolloutConfig(max_new_tokens=200, batch_size=1)
        (t,) = play_locally(model, codec, [query], environment, rollout=rollout, max_context=6000, greedy=True)
        return t

    return go


def test_an_episode_in_react(play: Any, plain: ChatCodec, parrot: Any, make_query: Any, environment: Any) -> None:
    turns = [REACT.render(GET, "Look at a.\nAction: first"), REACT.render(LOST), HERMES.render(GET), "who knows"]
    turns.append(REACT.render(SEVEN, "So it is 7."))
    query = make_query("q", "go")
    t = play(plain, parrot({"go": turns}), query, environment)
    assert [s.status for s in t.steps] == [S.OK, S.TOOL_ERROR, S.MALFORMED, S.MALFORMED, S.FINISH]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
    assert [plain.tokenizer.decode(t.input_ids[a:b]) for a, b in t.spans] == [turn + "<|im_end|>" for turn in turns]
    assert len(t.logprobs) == t.action_tokens
    assert t.messages == [
        {"role": "user", "content": "go"},
        call_message(GET, "Look at a.\nAction: first"),
        tool_message("get", '{"a": 7}'),
        call_message(LOST),
        tool_message("get", '{"error": "out of reach"}'),
        {"role": "assistant", "content": turns[2]},
        tool_message("error", '{"error": "no tool call"}'),
        {"role": "assistant", "content": "who knows"},
        tool_message("error", '{"error": "no tool call"}'),
        call_message(SEVEN, "So it is 7."),
    ]


def test_what_is_sampled_is_what_is_kept_and_taught(
    play: Any, plain: ChatCodec, parrot: Any, make_query: Any, environment_that_talks: Any
) -> None:
    turns = [REACT.render(GET, "Look."), REACT.render(EIGHT), "hm", REACT.render(SEVEN, "Again.")]
    query = make_query("q", "go")
    model = parrot({"go": turns})
    t = play(plain, model, query, environment_that_talks)
    assert [s.status for s in t.steps] == [S.OK, S.FINISH, S.MALFORMED, S.FINISH]
    prompt = plain.prompt_ids(t.messages[:1], query.tools)
    assert t.input_ids[: len(prompt)].tolist() == prompt
    text = plain.tokenizer.decode(t.input_ids)
    assert '\n<|im_start|>user\nObservation: {"a": 7}<|im_end|>\n<|im_start|>assistant\n' in text
    assert "\n<|im_start|>user\nObservation: \n\nAnd now?<|im_end|>\n<|im_start|>assistant\n" in text
    assert model.computed == len(t.input_ids) - 1, "every token is computed once; the last is never fed back"
    encoded = plain.encode(t.messages, query.tools)
    assert encoded.input_ids.tolist() == t.input_ids.tolist()
    assert list(encoded.spans) == list(t.spans)


def test_a_template_with_tools_can_speak_react_as_well(
    play: Any, tokenizer: PreTrainedTokenizerBase, parrot: Any, make_query: Any, environment: Any
) -> None:
    codec, query = ChatCodec(tokenizer, "react"), make_query("q", "go")
    t = play(codec, parrot({"go": [REACT.render(GET, "Look."), REACT.render(SEVEN)]}), query, environment)
    assert (t.stop_reason, t.solved) == (StopReason.FINISHED, 1.0)
    assert codec.encode(t.messages, query.tools).input_ids.tolist() == t.input_ids.tolist()
