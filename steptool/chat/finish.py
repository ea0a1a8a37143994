"""How a task ends: by a call of the tool Finish, or by an answer in a turn without a call, as agents in production do.

`rollout.finish` says which of the two a model sees and makes. Records hold a Finish as the last step either way, so
that annotators, rewards and reports need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from steptool.chat.call_format import write_answer
from steptool.chat.messages import FINISH_SCHEMA, GIVE_ANSWER, call_message, calls_of, text_of, tool_message
from steptool.config import FinishMode
from steptool.records import FINISH, Message, ToolCall, ToolSchema

WriteAnswer = Callable[[str, str], str]
"""Text of a turn, from an answer and the thought before it."""


def offers_finish(tools: Iterable[ToolSchema]) -> bool:
    """Whether the tool Finish is among the tools."""
    return any(tool["function"]["name"] == FINISH for tool in tools)


def offered_tools(tools: Sequence[ToolSchema], mode: FinishMode) -> list[ToolSchema]:
    """The tools that a model sees: with Finish (as the last one, where it is missing), or with text without it."""
    others = [tool for tool in tools if tool["function"]["name"] != FINISH]
    if mode == "text":
        return others
    return list(tools) if len(others) < len(tools) else [*others, FINISH_SCHEMA]


def make_finish(answer: str) -> ToolCall:
    """The Finish that an answer in text stands for. Nobody gives up in text: an empty answer is one like any other."""
    return ToolCall(FINISH, {"return_type": GIVE_ANSWER, "final_answer": answer})


def answer_of(call: ToolCall) -> str | None:
    """The answer in text that stands for a Finish: empty where it gives up, None where its arguments do not fit it."""
    kind, answer = call.arguments.get("return_type"), call.arguments.get("final_answer")
    if isinstance(kind, str) and kind.startswith("give_up"):
        return ""
    return answer if kind == GIVE_ANSWER and isinstance(answer, str) else None


def to_text_answers(messages: Sequence[Message], write: WriteAnswer = write_answer) -> list[Message]:
    """A conversation whose calls of Finish are answers in text; the empty responses to them are left out.

    `write` makes the text, as a chat format does. A Finish whose arguments do not fit it stays a call that fails.
    """
    turns: list[Message] = []
    follows_answer = False
    for message in messages:
        call = next(iter(calls_of(message)), None)
        answer = answer_of(call) if call and call.name == FINISH else None
        if answer is not None:
            turns.append({"role": "assistant", "content": write(answer, text_of(message))})
        elif not (follows_answer and message["role"] == "tool"):
            turns.append(message)
        follows_answer = answer is not None
    return turns


def to_finish_calls(messages: Sequence[Message]) -> list[Message]:
    """A conversation whose answers in text are calls of Finish, each with an empty response where something follows."""
    turns: list[Message] = []
    for message in messages:
        if message["role"] == "assistant" and not message.get("tool_calls"):
            turns += [call_message(make_finish(text_of(message))), tool_message(FINISH, "")]
        else:
            turns.append(message)
    return turns
