"""One episode in the making: its turns, what the environment answers, and what ends it.

A turn is what a policy says, with the tokens behind it and what it cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from steptool.chat.call_format import ParsedTurn, make_finish, offer_tools, read_answer
from steptool.chat.messages import GIVE_ANSWER, GIVE_UP, NO_CALL, make_call_message, make_tool_message
from steptool.config import FinishMode
from steptool.environments.base import VerdictError
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.records import FINISH, Message, Query, Step, StepStatus, StopReason, ToolCall, Trajectory

N = TypeVar("N", int, float)


class Decoding(StrEnum):
    """How a policy chooses its tokens."""

    GREEDY = "greedy"
    SAMPLED = "sampled"


@dataclass(frozen=True)
class TurnCost:
    """What turns cost. The sum of two costs counts what is known of either."""

    completion_tokens: int = 0
    """Tokens written."""
    prompt_tokens: int | None = None
    """Tokens read; None if the policy does not count them."""
    money: float | None = None
    """At the endpoint's prices; None if the configuration names none."""

    def __add__(self, other: TurnCost) -> TurnCost:
        return TurnCost(
            self.completion_tokens + other.completion_tokens,
            _add(self.prompt_tokens, other.prompt_tokens),
            _add(self.money, other.money),
        )


@dataclass(frozen=True)
class TurnTokens:
    """The tokens of one turn, from a policy that has them."""

    context_ids: Sequence[int]
    """Tokens between the last turn of the episode and this one: the prompt at first, later the answers."""
    ids: Sequence[int]
    """Tokens sampled, the one that ends the turn included."""
    logprobs: npt.NDArray[np.float32]
    """Log-probabilities [len(ids)] of the sampled tokens at the temperature of sampling (greedy: at 1)."""


@dataclass(frozen=True)
class Turn:
    """What a policy says in one turn."""

    parsed: ParsedTurn
    cost: TurnCost = TurnCost()
    tokens: TurnTokens | None = None
    """None where the policy has text alone."""
    message: Message | None = None
    """The message of an endpoint as it came, for the requests that follow."""


@dataclass(frozen=True)
class Refusal:
    """Why a policy makes no further turn in an episode."""

    stop: StopReason
    reason: str = ""
    """The error of the endpoint; empty where the context of the policy is full."""
    cost: TurnCost = TurnCost()


@dataclass(frozen=True)
class Exchange:
    """One turn and its answers: the environment's step, and the user's message after a final answer."""

    turn: Turn
    step: Step
    user_turn: str | None = None
    ends_episode: bool = False
    """The environment has ended the episode with this step."""


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode that has ended."""

    trajectory: Trajectory
    cost: TurnCost
    """The cost of all turns, including those on abandoned branches of a search."""
    refusal: str = ""
    """The error of the endpoint that ended the episode; empty if none did."""


def _add(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


MAX_MALFORMED = 3
"""Malformed steps in a row that end an episode."""


class Episode:
    """A query on its way through an environment.

    The runner calls `begin`, then for each turn of the policy `answer` and `record` until `stop` says why the episode
    has ended, then `end` and `finish`. A policy reads `query`, `exchanges` and `hint` to make the next turn.

    `max_steps` holds where the query sets no limit of its own; with None there is no limit. `finish` says whether the
    policy ends it with the tool Finish or with an answer in text; `tools` are those that the policy sees. With
    `digests` each step holds the digest of the environment's state before it, where the environment has one.
    """

    def __init__(
        self,
        query: Query,
        sample: int = 0,
        *,
        max_steps: int | None,
        round_index: int = -1,
        decoding: Decoding = Decoding.SAMPLED,
        finish: FinishMode = "tool",
        digests: bool = False,
    ) -> None:
        self.query, self.sample, self.round_index, self.decoding = query, sample, round_index, decoding
        self.finish_mode, self.tools = finish, offer_tools(query.tools, finish)
        self.stop: StopReason | None = None
        self.exchanges: list[Exchange] = []
        """The turns of the path, each with the answers to it."""
        self.hint = ""
        """A text for the next turn alone, from the search; it never becomes a part of the path."""
        self._max_steps, self._digests = query.max_steps or max_steps, digests
        self._offered = {tool["function"]["name"] for tool in self.tools}
        self._cost, self._refusal = TurnCost(), ""
        self._turns = self._tokens = 0
        self._solved: float | None = None
        self._check_error = ""
        self._environment: LimitedEnvironment | None = None
        self._session: LimitedSession | None = None
        self._abandoned_session: LimitedSession | None = None
        """A session that `go_back_to` has left and that is not closed yet."""
        self._start = self._seconds = 0.0

    @property
    def final_answer(self) -> str | None:
        """The answer that ends the path; None without an answer, or if the user goes on."""
        last = self.exchanges[-1] if self.exchanges else None
        return _find_answer(last.step) if last and last.user_turn is None else None

    def begin(self, environment: LimitedEnvironment) -> None:
        """Reset the environment for this episode's query."""
        self._start, self._environment = time.perf_counter(), environment
        self._session = environment.reset(self.query)

    def answer(self, turn: Turn) -> Exchange:
        """Let the environment answer a turn, and after a final answer the user. Episodes may do so side by side."""
        if self._abandoned_session:
            self._catch_up()
        session = self._open_session()
        state = session.state_digest() if self._digests else None
        step, ends_episode = self._play_turn(session, turn)
        if state is not None:
            step = replace(step, state=state)
        answer = _find_answer(step)
        return Exchange(turn, step, None if answer is None else session.next_turn(answer), ends_episode)

    def record(self, exchange: Exchange) -> None:
        """Add a turn and its answers to the path, and set `stop` if it ends the episode."""
        turn = exchange.turn
        self._turns += 1
        self._tokens += len(turn.tokens.ids) if turn.tokens else 0
        self._cost += turn.cost
        self.exchanges.append(exchange)
        self.stop = self._find_stop()

    def refuse(self, refusal: Refusal) -> None:
        """End the episode because the policy makes no further turn."""
        self.stop, self._refusal = refusal.stop, refusal.reason
        self._cost += refusal.cost

    def go_back_to(self, turns: int) -> None:
        """Go on from where the first `turns` turns had been made, as if there had been no further ones.

        The next `answer` makes the calls of these turns again in a fresh session. Their results are ignored: the policy
        has seen the first ones.
        """
        assert self._environment is not None
        self._abandoned_session, self._session = self._open_session(), self._environment.reset(self.query)
        del self.exchanges[turns:]
        self.stop = None

    def end(self) -> None:
        """Ask for the verdict and close the session. Where the check fails the episode keeps the error."""
        try:
            self._solved = self._open_session().solved(self.final_answer)
        except VerdictError as error:
            self._check_error = str(error)
        self._seconds = time.perf_counter() - self._start
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it has a session that is not closed."""
        return bool(self._session or self._abandoned_session)

    def close(self, *, interrupted: bool = False) -> None:
        """Close the session if it is open; soon, where Ctrl-C ends the run."""
        for session in (self._abandoned_session, self._session):
            if session:
                session.close(interrupted=interrupted)
        self._abandoned_session = self._session = None

    def finish(self, policy: str, temperature: float) -> PlayedEpisode:
        """The record of the episode, which has ended, and what it cost."""
        assert self.stop is not None
        tokens = [exchange.turn.tokens for exchange in self.exchanges]
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        logprobs = [np.zeros(0, dtype=np.float32)]
        for part in filter(None, tokens):
            ids += part.context_ids
            spans.append((len(ids), len(ids) + len(part.ids)))
            ids += part.ids
            logprobs.append(part.logprobs)
        trajectory = Trajectory(
            trajectory_id=make_episode_id(policy, self.round_index, self.query.query_id, self.decoding, self.sample),
            query_id=self.query.query_id,
            environment=self.query.environment,
            tier=self.query.tier,
            policy=policy,
            round=self.round_index,
            sample=self.sample,
            temperature=temperature,
            messages=write_messages(self.query, self.exchanges),
            input_ids=np.asarray(ids, dtype=np.int32),
            spans=tuple(spans),
            logprobs=np.concatenate(logprobs),
            steps=[exchange.step for exchange in self.exchanges],
            stop_reason=self.stop,
            final_answer=self.final_answer,
            solved=self._solved,
            seconds=self._seconds,
            abandoned_turns=self._turns - len(self.exchanges),
            abandoned_tokens=self._tokens - sum(end - start for start, end in spans),
            check_error=self._check_error,
        )
        return PlayedEpisode(trajectory, self._cost, self._refusal)

    def _open_session(self) -> LimitedSession:
        assert self._session is not None, "the episode has not begun, or it has ended"
        return self._session

    def _catch_up(self) -> None:
        """Close the session that was left and bring the fresh one to where the path stands."""
        abandoned, self._abandoned_session = self._abandoned_session, None
        if abandoned:
            abandoned.close()
        session = self._open_session()
        for exchange in self.exchanges:
            step, answer = exchange.step, _find_answer(exchange.step)
            if answer is not None:
                session.next_turn(answer)
            elif step.call and step.call.name != FINISH and step.status is not StepStatus.UNKNOWN_TOOL:
                session.call(step.call)

    def _play_turn(self, session: LimitedSession, turn: Turn) -> tuple[Step, bool]:
        """What becomes of a turn, and whether the environment ends the episode with it."""
        call, answer = turn.parsed.call, turn.parsed.answer
        if call is None and answer is not None and self.finish_mode == "text":
            return Step(make_finish(answer), StepStatus.FINISH, ""), False
        if call is None:
            return Step(None, StepStatus.MALFORMED, _write_error(turn.parsed.problem)), False
        if call.name == FINISH and self.finish_mode == "tool":
            return _finish(call), False
        if call.name not in self._offered and not session.offers(call.name):
            return Step(call, StepStatus.UNKNOWN_TOOL, _write_error(f"unknown tool {call.name}")), False
        result = session.call(call)
        return Step(call, result.status, result.observation), result.ends_episode

    def _find_stop(self) -> StopReason | None:
        """Why the path ends here, if it does."""
        last = self.exchanges[-1]
        if last.ends_episode:
            return StopReason.ENDED
        if self.final_answer is not None:
            return StopReason.FINISHED
        if last.step.status is StepStatus.FINISH and last.user_turn is None:
            return StopReason.GAVE_UP
        statuses = [exchange.step.status for exchange in self.exchanges[-MAX_MALFORMED:]]
        if statuses == [StepStatus.MALFORMED] * MAX_MALFORMED:
            return StopReason.MALFORMED
        return StopReason.STEP_LIMIT if self._max_steps and len(self.exchanges) >= self._max_steps else None


def make_episode_id(policy: str, round_index: int, query_id: str, decoding: Decoding, sample: int) -> str:
    """The id of an episode: no other that a policy plays in the same round, greedily or sampled, has it."""
    return f"{policy}-r{round_index}-{query_id}-{decoding[0]}{sample}"


def write_messages(query: Query, exchanges: list[Exchange]) -> list[Message]:
    """The conversation in OpenAI's form. A Finish that ends the episode and an answer in text have no response."""
    messages = query.first_messages
    for exchange in exchanges:
        parsed, step = exchange.turn.parsed, exchange.step
        plain: Message = {"role": "assistant", "content": parsed.text}
        messages.append(make_call_message(parsed.call, parsed.thought) if parsed.call else plain)
        if step.status is not StepStatus.FINISH or (parsed.call and exchange.user_turn is not None):
            messages.append(make_tool_message(get_observed_name(step), step.observation))
        if exchange.user_turn is not None:
            messages.append({"role": "user", "content": exchange.user_turn})
    return messages


def get_observed_name(step: Step) -> str:
    """Name under which a step's observation is shown to the model."""
    return step.call.name if step.call else NO_CALL


def _finish(call: ToolCall) -> Step:
    if read_answer(call) is not None:
        return Step(call, StepStatus.FINISH, "")
    if call.arguments.get("return_type") == GIVE_ANSWER:
        return Step(call, StepStatus.INVALID_ARGUMENTS, _write_error("final_answer is missing"))
    return Step(call, StepStatus.INVALID_ARGUMENTS, _write_error(f"return_type must be {GIVE_ANSWER} or {GIVE_UP}"))


def _find_answer(step: Step) -> str | None:
    """The answer of a Finish that gives one."""
    if step.status is not StepStatus.FINISH or step.call is None or step.call.arguments["return_type"] != GIVE_ANSWER:
        return None
    return str(step.call.arguments["final_answer"])


def _write_error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)
