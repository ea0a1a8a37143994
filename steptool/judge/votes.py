"""Votes of a judge: a chat model that answers by calling one function, asked again where the answer is of no use."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from steptool.chat.endpoint import Endpoint, EndpointError, EndpointRefused
from steptool.config import JudgeConfig
from steptool.records import Message, ToolSchema

T = TypeVar("T")


@dataclass(frozen=True)
class Question(Generic[T]):
    """What is asked in one wording, and how its answers are read."""

    instructions: str
    function: ToolSchema
    """The function that the answer has to call."""
    read: Callable[[Mapping[str, Any]], T]
    """Its arguments as an answer. Raises ValueError saying what is wrong with them."""


@dataclass(frozen=True)
class Vote(Generic[T]):
    """One answer, or why there is none."""

    answer: T | None
    problem: str = ""


class Voters:
    """A judge's endpoint with its limits. The time for all its votes runs from the moment this is made."""

    def __init__(self, endpoint: Endpoint, config: JudgeConfig) -> None:
        self.config = config
        self._endpoint, self._deadline = endpoint, time.monotonic() + config.deadline
        self._counts, self._lock = Counter[str](), threading.Lock()

    def votes(self, question: Question[T], text: str) -> list[Vote[T]]:
        """The configured number of votes on a text. Raises EndpointRefused if the endpoint takes no request at all."""
        return [self._vote(question, text, number) for number in range(self.config.votes)]

    def counts(self) -> dict[str, float]:
        """What was asked, came back and was spent until now, by name."""
        with self._lock:
            return {
                **self._endpoint.usage.counts(),
                **{n: self._counts[n] for n in ("answers of no use", "votes missing")},
            }

    def close(self) -> None:
        """Close the endpoint."""
        self._endpoint.close()

    def _vote(self, question: Question[T], text: str, number: int) -> Vote[T]:
        problems: list[str] = []
        for _ in range(self.config.attempts):
            try:
                reply = self._endpoint.chat(
                    _messages(question, text, problems),
                    [question.function],
                    {"type": "function", "function": {"name": _name(question)}},
                    vote=number,
                    deadline=self._deadline,
                )
                return Vote(question.read(_arguments(reply.message, _name(question))))
            except EndpointRefused:
                raise
            except EndpointError as error:
                problems.append(str(error))
                break
            except ValueError as error:
                problems.append(str(error))
                self._note("answers of no use")
        self._note("votes missing")
        return Vote(None, problems[-1])

    def _note(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def prompt_hash(question: Question[Any], *parts: object) -> str:
    """Short hash of everything in a prompt that is not the text judged; `parts`: what else shapes it."""
    whole = json.dumps([question.instructions, question.function, _AGAIN, *parts], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


_AGAIN = "Earlier answers to this could not be used. Call the function {name} once, with these mistakes mended:"


def _messages(question: Question[Any], text: str, problems: list[str]) -> list[Message]:
    """The prompt. That it names what was wrong makes it another request: the same would bring the same again."""
    if problems:
        mistakes = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, start=1))
        text = f"{text}\n\n{_AGAIN.format(name=_name(question))}\n{mistakes}"
    return [{"role": "system", "content": question.instructions}, {"role": "user", "content": text}]


def _name(question: Question[Any]) -> str:
    return str(question.function["function"]["name"])


def _arguments(message: Message, name: str) -> Mapping[str, Any]:
    """The arguments of the call in a message. Raises ValueError if there is no such call."""
    if message.get("refusal"):
        raise ValueError("the answer was refused")
    calls = message.get("tool_calls")
    if not calls or not isinstance(calls, list):
        raise ValueError("no function was called")
    try:
        called, text = calls[0]["function"]["name"], calls[0]["function"]["arguments"]
        arguments = json.loads(text) if isinstance(text, str) else text
    except (LookupError, TypeError):
        raise ValueError("the call has no name and arguments") from None
    except (ValueError, RecursionError):
        raise ValueError("the arguments are not valid JSON") from None
    if called != name or not isinstance(arguments, dict):
        raise ValueError(f"expected a call of {name} with an object of arguments")
    return arguments
