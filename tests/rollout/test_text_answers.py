"""Episodes that end with an answer in text: by hand, of a local model, played back, and of a user who goes on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from play_fixtures import GET, ShelfEnvironment, TalkingEnvironment
from steptool.chat.call_format import to_text_answers
from steptool.chat.codec import ChatCodec
from steptool.chat.formats import HERMES, REACT
from steptool.chat.messages import make_call_message, make_tool_message
from steptool.config import RolloutConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.text_policies import ScriptedPolicy
from steptool.records import Query, StepStatus, StopReason, ToolCall, Trajectory
from steptool.rollout.episode import Episode, Turn, TurnTokens
from steptool.rollout.runner import roll_out

MakeQuery = Callable[..., Query]
READ = ToolCall("get", {"key": "a"})
SEVEN = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"})
UP = ToolCall("Finish", {"return_type": "give_up_and_restart"})
ROLLOUT = RolloutConfig(finish="text", max_steps=4, max_new_tokens=200, batch_size=2)


def say(text: str, context: Sequence[int], ids: Sequence[int]) -> Turn:
    return Turn(HERMES.parse(text), tokens=TurnTokens(context, ids, -np.arange(1, len(ids) + 1, dtype=np.float32)))


@pytest.fixture
def play(make_query: MakeQuery) -> Callable[..., Trajectory]:
    """The trajectory of turns that are given one after the other."""

    def go(turns: Sequence[Turn], environment: Environment, max_steps: int = 8) -> Trajectory:
        episode = Episode(make_query("q", "go"), max_steps=max_steps, finish="text")
        episode.begin(LimitedEnvironment(environment, ToolsConfig()))
        for turn in turns:
            assert episode.stop is None
            episode.record(episode.answer(turn))
        episode.end()
        return episode.finish("p", 0.7).trajectory

    return go


def test_a_turn_without_a_call_is_the_finish(play: Any, environment: Environment) -> None:
    thought = "<think>\nIt is 7.\n</think>"
    t = play([say(HERMES.render(READ), [1, 2], [3, 4]), say(f"{thought}\n\n7", [5], [6, 7])], environment)
    assert [(s.call, s.status) for s in t.steps] == [(READ, StepStatus.OK), (SEVEN, StepStatus.FINISH)]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
    assert (t.input_ids.tolist(), t.spans) == ([1, 2, 3, 4, 5, 6, 7], ((2, 4), (5, 7)))
    assert t.logprobs.tolist() == [-1, -2, -1, -2]
    assert t.messages == [
        {"role": "user", "content": "go"},
        make_call_message(READ),
        make_tool_message("get", '{"a": 7}'),
        {"role": "assistant", "content": f"{thought}\n\n7"},
    ]


def test_a_call_gone_wrong_is_no_answer_and_finish_is_an_unknown_tool(play: Any, environment: Environment) -> None:
    turns = [say("<tool_call>{", [1], [2]), say(HERMES.render(SEVEN), [3], [4]), say("8", [5], [6])]
    t = play(turns, environment)
    assert [s.status for s in t.steps] == [StepStatus.MALFORMED, StepStatus.UNKNOWN_TOOL, StepStatus.FINISH]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "8", 0.0)
    assert t.messages[2] == make_tool_message("error", '{"error": "tool call not closed"}')


def test_an_empty_answer_is_an_answer_on_which_the_verdict_decides(play: Any, environment: Environment) -> None:
    t = play([say("<think>\n7?\n</think>", [1], [2])], environment)
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "", 0.0)


def test_the_user_goes_on_after_an_answer(play: Any, environment_that_talks: TalkingEnvironment) -> None:
    t = play([say("6", [1], [2]), say("7", [3], [4])], environment_that_talks)
    assert environment_that_talks.sessions[0].answers == ["6", "7"]
    assert [(m["role"], m["content"]) for m in t.messages] == [
        ("user", "go"), ("assistant", "6"), ("user", "And now?"), ("assistant", "7"),
    ]  # fmt: skip
    assert (len(t.steps), t.final_answer, t.solved) == (2, "7", 1.0)


def test_a_model_sees_no_finish_and_its_answer_is_trained_as_it_was_sampled(
    parrot: Any, codec: ChatCodec, play_locally: Any, make_query: MakeQuery, environment: ShelfEnvironment
) -> None:
    call = codec.tokenizer.decode(codec.assistant_ids(make_call_message(READ))[:-1])
    (t,) = play_locally(
        parrot({"go": [call, "7"]}), codec, [make_query("q", "go")], environment, rollout=ROLLOUT, max_context=2000
    )
    text = codec.tokenizer.decode(t.input_ids)
    assert "get" in text and "Finish" not in text and text.endswith("<|im_start|>assistant\n7<|im_end|>")
    start, end = t.spans[-1]
    assert codec.tokenizer.decode(t.input_ids[start:end]) == "7<|im_end|>" and end == len(t.input_ids)
    assert len(t.logprobs) == sum(end - start for start, end in t.spans) and (t.logprobs <= 0).all()
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
    # A demonstration with the same calls, told with Finish, becomes the very tokens that were sampled.
    messages = [*t.messages[:-1], make_call_message(SEVEN)]
    lesson = codec.encode(to_text_answers(messages, codec.format.render_answer), [GET])
    assert lesson.input_ids.tolist() == t.input_ids.tolist() and lesson.spans == t.spans


def test_between_an_answer_and_the_next_wish_stands_the_users_message_alone(
    parrot: Any, codec: ChatCodec, play_locally: Any, make_query: MakeQuery, environment_that_talks: TalkingEnvironment
) -> None:
    (t,) = play_locally(
        parrot({"go": ["6", "7"]}), codec, [make_query("q", "go")], environment_that_talks, rollout=ROLLOUT,
        max_context=2000,
    )  # fmt: skip
    text = codec.tokenizer.decode(t.input_ids)
    assert "assistant\n6<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>" in text
    assert codec.encode(t.messages, [GET]).input_ids.tolist() == t.input_ids.tolist()


def test_react_ends_with_its_line(
    parrot: Any, tokenizer: PreTrainedTokenizerBase, play_locally: Any, make_query: MakeQuery
) -> None:
    codec, environment = ChatCodec(tokenizer, "react"), ShelfEnvironment()
    queries = [make_query("right", "right"), make_query("wrong", "wrong")]
    turns = {"right": [REACT.render(READ, "I look."), "Thought: seven\nFinal Answer: 7"], "wrong": ["It is 7."]}
    right, wrong = play_locally(parrot(turns), codec, queries, environment, rollout=ROLLOUT, max_context=4000)
    sentence = "answer in a turn without a call, in a line that begins with Final Answer:"
    assert sentence in tokenizer.decode(right.input_ids)
    assert (right.final_answer, right.solved, len(right.steps)) == ("7", 1.0, 2)
    assert (wrong.final_answer, wrong.stop_reason) == (None, StopReason.MALFORMED)
    assert codec.encode(right.messages, [GET]).input_ids.tolist() == right.input_ids.tolist()


@pytest.mark.parametrize(
    ("calls", "answer", "solved"), [([READ, SEVEN], "7", 1.0), ([READ, UP], "", 0.0), ([READ], "", 0.0)]
)
def test_what_is_played_back_ends_in_text(
    calls: list[ToolCall], answer: str, solved: float, make_query: MakeQuery, environment: Environment
) -> None:
    policy = ScriptedPolicy(lambda *_: calls, finish="text")
    (episode,) = roll_out(policy, [make_query("q", "go")], environment)
    t = episode.trajectory
    assert (t.messages[-1], t.steps[-1].status) == ({"role": "assistant", "content": answer}, StepStatus.FINISH)
    assert (t.final_answer, t.solved) == (answer, solved)
