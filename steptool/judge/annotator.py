"""What scores the steps of trajectories: the protocol of annotators, and what those that are judges share.

A judge reads a transcript of a trajectory. Each of its votes is a call of one function.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from steptool.chat.endpoint import Endpoint, EndpointError, EndpointRefused
from steptool.config import JudgeConfig
from steptool.records import Message, Query, Step, StepStatus, ToolSchema, Trajectory

S = TypeVar("S")
T = TypeVar("T")
_AHEAD = 4
"""Items for each thread that are submitted before the first result is awaited."""


def map_in_order(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """Do `work` on each item in threads, and yield the results in the order of the items. An error stops the rest."""
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[T]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= _AHEAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class StepScore:
    """Components of one step's reward. None means that a score is missing or does not apply; it never stands for 0."""

    succ_calling: float | None
    """1 if the call is well formed and the tool did not fail, else 0."""
    contribution: float | None
    """How much the step serves the final answer, in [0, 1]. A Finish has none, since it is the answer itself."""
    is_solved: float | None = None
    """0, 0.5 (unsure) or 1; only the last step has one."""
    votes: Mapping[str, Any] = field(default_factory=dict)
    """What the score was made of, as values that JSON can hold."""
    rationale: str = ""


class Annotator(Protocol):
    """Scores trajectories. Scores may be compared only where name, version and prompt hash are equal."""

    @property
    def name(self) -> str:
        """Name under which the scores are stored."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same trajectory may get another score."""
        ...

    @property
    def prompt_hash(self) -> str:
        """Hash of the prompt; empty for annotators without a prompt."""
        ...

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        ...


@runtime_checkable
class RemoteAnnotator(Annotator, Protocol):
    """An annotator that waits for a server. Several threads give it trajectories at the same time."""

    @property
    def concurrency(self) -> int:
        """Number of trajectories at the same time."""
        ...

    def counts(self) -> dict[str, float]:
        """Requests, replies and costs until now, by name."""
        ...

    def missing_reasons(self) -> Counter[str]:
        """Scores that could not be had until now, counted by reason."""
        ...

    def require_votes(self) -> None:
        """Raise an error that says why, if scores were asked for and none came."""
        ...

    def close(self) -> None:
        """Close connections and files."""
        ...


def count_reasons(reasons: Mapping[str, int], most: int = 3) -> str:
    """The most frequent reasons with their numbers, in one line."""
    ranked_reasons = sorted(reasons.items(), key=lambda item: -item[1])
    rest_count = sum(count for _, count in ranked_reasons[most:])
    parts = [f"{count} × {reason}" for reason, count in ranked_reasons[:most]]
    return "; ".join([*parts, *([f"{rest_count} × something else"] if rest_count else [])])


def replace_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which tools and models may return but no request or file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Question(Generic[T]):
    """Instructions to a judge, the function that it has to call, and how the call is read."""

    instructions: str
    function: ToolSchema
    read: Callable[[Mapping[str, Any]], T]
    """Turns the arguments of the call into an answer. Raises ValueError saying what is wrong with them."""


@dataclass(frozen=True)
class Vote(Generic[T]):
    """One answer; or None, and the problem that prevented it."""

    answer: T | None
    problem: str = ""


class JudgeError(Exception):
    """A judge that gave no vote at all. The text says why, counted by reason."""


class VotePanel:
    """Asks the same question several times. The deadline for all votes is counted from the making of the panel."""

    def __init__(self, endpoint: Endpoint, config: JudgeConfig) -> None:
        self._config, self._endpoint = config, endpoint
        self._deadline = time.monotonic() + config.deadline
        self._counts, self._problems, self._lock = Counter[str](), Counter[str](), threading.Lock()
        self._vote_count = 0

    def ask(self, question: Question[T], text: str) -> list[Vote[T]]:
        """The configured number of votes on a text. Raises EndpointRefused if the endpoint takes no request at all."""
        return [self._cast_vote(question, text, number) for number in range(self._config.votes)]

    def counts(self) -> dict[str, float]:
        """Requests, replies and costs until now, by name."""
        with self._lock:
            own_counts = {name: self._counts[name] for name in ("answers of no use", "votes missing")}
        return {**self._endpoint.usage.counts(), **own_counts}

    def missing_reasons(self) -> Counter[str]:
        """The missing votes until now, counted by the last problem of each."""
        with self._lock:
            return Counter(self._problems)

    def require_votes(self) -> None:
        """Raise JudgeError if votes were asked for and none was given."""
        reasons = self.missing_reasons()
        if reasons and not self._vote_count:
            raise JudgeError(f"the judge gave no vote: {count_reasons(reasons)}")

    def close(self) -> None:
        """Close the endpoint."""
        self._endpoint.close()

    def _cast_vote(self, question: Question[T], text: str, number: int) -> Vote[T]:
        problems: list[str] = []
        for _ in range(self._config.attempts):
            try:
                reply = self._endpoint.chat(
                    _write_prompt(question, text, problems),
                    [question.function],
                    {"type": "function", "function": {"name": _get_function_name(question)}},
                    vote=number,
                    deadline=self._deadline,
                )
                answer = question.read(_read_arguments(reply.message, _get_function_name(question)))
                with self._lock:
                    self._vote_count += 1
                return Vote(answer)
            except EndpointRefused:
                raise
            except EndpointError as error:
                problems.append(str(error))
                break
            except ValueError as error:
                problems.append(str(error))
                self._count("answers of no use")
        self._count("votes missing")
        with self._lock:
            self._problems[problems[-1]] += 1
        return Vote(None, problems[-1])

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


class PanelJudge:
    """A judge that asks a panel, and reports what the panel has counted."""

    def __init__(self, config: JudgeConfig) -> None:
        """The deadline for all votes is counted from here. Raises ValueError if the configuration has no endpoint."""
        self._panel = VotePanel(Endpoint(config.endpoint, config.cache), config)

    def counts(self) -> dict[str, float]:
        """Requests, replies and costs until now, by name."""
        return self._panel.counts()

    def missing_reasons(self) -> Counter[str]:
        """The missing votes until now, counted by reason."""
        return self._panel.missing_reasons()

    def require_votes(self) -> None:
        """Raise JudgeError if votes were asked for and none was given."""
        self._panel.require_votes()

    def close(self) -> None:
        """Close the endpoint."""
        self._panel.close()


def hash_prompt(question: Question[Any], *parts: object) -> str:
    """Short hash of everything in a prompt but the text that is judged; `parts`: what else shapes the prompt."""
    whole = json.dumps([question.instructions, question.function, _RETRY, *parts], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


_RETRY = "Earlier answers to this could not be used. Call the function {name} once, with these mistakes mended:"


def _write_prompt(question: Question[Any], text: str, problems: list[str]) -> list[Message]:
    """The prompt. A further attempt names the earlier problems: an unchanged request would bring the same answer."""
    if problems:
        mistakes = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, start=1))
        text = f"{text}\n\n{_RETRY.format(name=_get_function_name(question))}\n{mistakes}"
    return [{"role": "system", "content": question.instructions}, {"role": "user", "content": text}]


def _get_function_name(question: Question[Any]) -> str:
    return str(question.function["function"]["name"])


def _read_arguments(message: Message, name: str) -> Mapping[str, Any]:
    """The arguments of the call in a message. Raises ValueError if there is no such call."""
    if message.get("refusal"):
        raise ValueError("the answer was refused")
    calls = message.get("tool_calls")
    if not calls or not isinstance(calls, list):
        raise ValueError("no function was called")
    try:
        call_name, text = calls[0]["function"]["name"], calls[0]["function"]["arguments"]
        arguments = json.loads(text) if isinstance(text, str) else text
    except (LookupError, TypeError):
        raise ValueError("the call has no name and arguments") from None
    except (ValueError, RecursionError):
        raise ValueError("the arguments are not valid JSON") from None
    if call_name != name or not isinstance(arguments, dict):
        raise ValueError(f"expected a call of {name} with an object of arguments")
    return arguments


def select_judged_steps(trajectory: Trajectory) -> Sequence[Step]:
    """The steps before the final Finish; all steps where there is no Finish."""
    steps = trajectory.steps
    return steps[:-1] if steps and steps[-1].status is StepStatus.FINISH else steps


def write_transcript(query: Query, trajectory: Trajectory, limit: int) -> str:
    """The task, the numbered steps and the final answer. Texts longer than `limit` characters are cut, with a mark.

    Texts by tools and models are written as JSON strings, so that they cannot pass for a part of the prompt.
    """
    steps, user_turns = select_judged_steps(trajectory), _list_user_turns(trajectory)
    parts = [
        f"Step {number}\n{_write_step(step, limit)}" + "".join(f"\nThe user goes on: {_quote(u, limit)}" for u in turns)
        for number, (step, turns) in enumerate(zip(steps, user_turns, strict=False), start=1)
    ]
    task = f"Task: {_quote(query.instruction, limit)}"
    answer = "none was given" if trajectory.final_answer is None else _quote(trajectory.final_answer, limit)
    return "\n\n".join([task, f"Number of steps: {len(steps)}", *parts, f"Final answer: {answer}"])


def _list_user_turns(trajectory: Trajectory) -> list[list[str]]:
    """What the user says after each step, in episodes that go on after an answer."""
    turns: list[list[str]] = [[] for _ in trajectory.steps]
    step = -1
    for message in trajectory.messages:
        step += message["role"] == "assistant"
        if message["role"] == "user" and 0 <= step < len(turns):
            turns[step].append(str(message["content"]))
    return turns


def _write_step(step: Step, limit: int) -> str:
    if step.call is None:
        call = "Call: none that could be read"
    else:
        arguments = json.dumps(dict(step.call.arguments), ensure_ascii=False)
        call = f"Tool: {_quote(step.call.name, limit)}\nArguments: {_cut(replace_surrogates(arguments), limit)}"
    return f"{call}\nObservation: {_quote(step.observation, limit)}"


def _quote(text: str, limit: int) -> str:
    return _cut(json.dumps(replace_surrogates(text), ensure_ascii=False), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... [cut: {limit} of {len(text)} characters shown]"
