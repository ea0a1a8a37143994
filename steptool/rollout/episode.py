"""An episode without its tokens: what the policy says, what becomes of it, and what ends it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from steptool.chat.finish import GIVE_ANSWER, GIVE_UP
from steptool.chat.formats import ParsedTurn
from steptool.chat.messages import NO_CALL, call_message, tool_message
from steptool.environments.limits import LimitedEnvironment, LimitedSession
from steptool.records import FINISH, Message, Query, Step, StepStatus, StopReason, ToolCall, Trajectory

MAX_MALFORMED = 3
"""Malformed steps in a row that end an episode."""
_NO_TOKENS = np.zeros(0, dtype=np.int32)
_NO_LOGPROBS = np.zeros(0, dtype=np.float32)


def opening(query: Query) -> list[Message]:
    """The messages that an episode begins with."""
    return [{"role": "user", "content": query.instruction}]


class Dialogue:
    """One episode in the making: `begin`; `act` and `note` for each turn of the policy until `stop` says why; `end`.

    `max_steps` holds where the query sets no limit of its own. Whoever gives the turns may set `stop` as well, and go
    `back_to` an earlier turn.
    """

    def __init__(self, query: Query, max_steps: int) -> None:
        self.query = query
        self.stop: StopReason | None = None
        self.user_turn: str | None = None
        """What the user says after the last turn, if anything."""
        self._max_steps = query.max_steps or max_steps
        self._listed = {FINISH, *(tool["function"]["name"] for tool in query.tools)}
        self._messages = opening(query)
        self._steps: list[Step] = []
        self._ends: list[int] = []
        """Number of messages after each step."""
        self._answer: str | None = None
        self._solved: float | None = None
        self._guard: LimitedEnvironment | None = None
        self._sessions: list[LimitedSession] = []
        """The session in use, after the one that was left, if any."""
        self._started = self._seconds = 0.0

    @property
    def session(self) -> LimitedSession:
        """The environment's session of this episode."""
        return self._sessions[-1]

    @property
    def last(self) -> Step:
        """The last step."""
        return self._steps[-1]

    def begin(self, guard: LimitedEnvironment) -> None:
        """Reset the environment for this episode's query."""
        self._started, self._guard = time.perf_counter(), guard
        self._sessions.append(guard.reset(self.query))

    def act(self, turn: ParsedTurn) -> None:
        """Let the environment, and after a final answer the user, answer a turn. Dialogues may do so side by side."""
        if len(self._sessions) > 1:
            self._make_up()
        step = self._answered(turn)
        self._steps.append(step)
        self.user_turn = None
        if step.status is StepStatus.FINISH and self._answer is not None:
            self.user_turn = self.session.next_turn(self._answer)
            if self.user_turn is None:
                self.stop = StopReason.FINISHED

    def note(self, turn: ParsedTurn) -> None:
        """Write the turn and what answers it down as messages, and stop at a limit."""
        step = self.last
        plain: Message = {"role": "assistant", "content": turn.text}
        self._messages.append(call_message(turn.call, turn.thought) if turn.call else plain)
        if step.status is not StepStatus.FINISH or self.user_turn is not None:
            self._messages.append(tool_message(shown_name(step), step.observation))
        if self.user_turn is not None:
            self._messages.append({"role": "user", "content": self.user_turn})
            self._answer = None
        self._ends.append(len(self._messages))
        self.stop = self.stop or self._limit()

    def back_to(self, turns: int) -> None:
        """Go on from where the first `turns` turns had been made, as if no other had been.

        The next `act` gives a fresh session the calls of these turns again. What it answers is not looked at: the
        policy has seen the first answers.
        """
        assert self._guard is not None
        self._sessions.append(self._guard.reset(self.query))
        del self._steps[turns:], self._ends[turns:]
        self._messages = self._messages[: self._ends[-1]] if turns else opening(self.query)
        last = self._messages[-1]
        self.user_turn = last["content"] if turns and last["role"] == "user" else None
        self.stop = self._answer = None

    def end(self) -> None:
        """Ask for the verdict and close the session."""
        self._solved = self.session.solved(self._answer)
        self._seconds = time.perf_counter() - self._started
        self.close()

    def close(self) -> None:
        """Close the session if it is open."""
        while self._sessions:
            self._sessions.pop().close()

    def trajectory(
        self,
        policy: str,
        round: int,
        sample: int,
        temperature: float,
        input_ids: npt.NDArray[np.int32] = _NO_TOKENS,
        spans: Sequence[tuple[int, int]] = (),
        logprobs: npt.NDArray[np.float32] = _NO_LOGPROBS,
    ) -> Trajectory:
        """The episode as it ended, with its tokens if there are any."""
        assert self.stop is not None
        return Trajectory(
            trajectory_id=f"{policy}-r{round}-{self.query.query_id}-s{sample}",
            query_id=self.query.query_id,
            environment=self.query.environment,
            tier=self.query.tier,
            policy=policy,
            round=round,
            sample=sample,
            temperature=temperature,
            messages=self._messages,
            input_ids=input_ids,
            spans=spans,
            logprobs=logprobs,
            steps=self._steps,
            stop_reason=self.stop,
            final_answer=self._answer,
            solved=self._solved,
            seconds=self._seconds,
        )

    def _make_up(self) -> None:
        """Close the session that was left and bring the new one to where the dialogue stands."""
        self._sessions.pop(0).close()
        for step in self._steps:
            if step.call is None or step.status is StepStatus.UNKNOWN_TOOL:
                continue
            if step.call.name != FINISH:
                self.session.call(step.call)
            elif step.status is StepStatus.FINISH:
                self.session.next_turn(step.call.arguments["final_answer"])

    def _answered(self, turn: ParsedTurn) -> Step:
        """What becomes of a turn."""
        call = turn.call
        if call is None:
            return Step(None, StepStatus.MALFORMED, _error(turn.problem))
        if call.name == FINISH:
            return self._finish(call)
        if call.name not in self._listed and not self.session.offers(call.name):
            return Step(call, StepStatus.UNKNOWN_TOOL, _error(f"unknown tool {call.name}"))
        result = self.session.call(call)
        return Step(call, result.status, result.observation)

    def _finish(self, call: ToolCall) -> Step:
        kind, answer = call.arguments.get("return_type"), call.arguments.get("final_answer")
        if isinstance(kind, str) and kind.startswith("give_up"):
            self.stop = StopReason.GAVE_UP
        elif kind != GIVE_ANSWER:
            return Step(call, StepStatus.INVALID_ARGUMENTS, _error(f"return_type must be {GIVE_ANSWER} or {GIVE_UP}"))
        elif not isinstance(answer, str):
            return Step(call, StepStatus.INVALID_ARGUMENTS, _error("final_answer is missing"))
        else:
            self._answer = answer
        return Step(call, StepStatus.FINISH, "")

    def _limit(self) -> StopReason | None:
        last = [step.status for step in self._steps[-MAX_MALFORMED:]]
        if last == [StepStatus.MALFORMED] * MAX_MALFORMED:
            return StopReason.MALFORMED
        return StopReason.STEP_LIMIT if len(self._steps) >= self._max_steps else None


def shown_name(step: Step) -> str:
    """Name under which a step's observation is shown to the model."""
    return step.call.name if step.call else NO_CALL


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)
