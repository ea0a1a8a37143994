"""The scripted expert: it solves a query, or takes shortcuts and makes slips as in logs of people."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from steptool.chat.messages import call_message, tool_message
from steptool.config import Config
from steptool.environments.desk.environment import DeskSession
from steptool.environments.desk.tasks import DONE, Goal, goals_of
from steptool.environments.desk.tools import TOOLS
from steptool.records import FINISH, Message, Query, Step, StepStatus, StopReason, ToolCall, Trajectory


class _CallFailed(Exception):
    """A call of the expert failed, or it stopped before the goal was reached."""


class Expert:
    """One attempt at one query."""

    def __init__(self, query: Query, rng: random.Random, slips: float, shortcuts: float) -> None:
        self._query, self._rng, self._slips = query, rng, slips
        self._shortcuts = shortcuts
        self._session = DeskSession(query)
        self._steps: list[Step] = []
        self._last: dict[str, str] = {}
        self._patience = 10**6

    def attempt(self) -> Trajectory:
        """The attempt as a recorded trajectory (text only)."""
        goals = goals_of(self._query)
        hurried = self._rng.randrange(len(goals)) if self._rng.random() < self._shortcuts else -1
        for number, goal in enumerate(goals):
            self._goal(goal, number == hurried, len(goals))
        finish = ToolCall(FINISH, {"return_type": "give_answer", "final_answer": DONE})
        self._steps.append(Step(finish, StepStatus.FINISH, ""))
        return _trajectory(self._query, self._steps, DONE, self._session.solved(DONE))

    def _goal(self, goal: Goal, hurried: bool, goals: int) -> None:
        if not hurried:
            goal.carry_out(self._call)
            return
        corner = self._rng.choice(("habit", "early", "forget") if goals > 1 else ("habit", "early"))
        if corner == "forget":
            return
        try:
            if corner == "habit":
                goal.take_shortcut(self._call)
            else:
                self._patience = self._rng.randrange(1, 3)
                goal.carry_out(self._call)
        except _CallFailed:
            if self._last:
                self._execute(ToolCall("report", {"value": self._rng.choice(list(self._last.values()))}))
        finally:
            self._patience = 10**6

    def _call(self, name: str, /, **arguments: str | int) -> dict[str, str]:
        if self._patience == 0:
            raise _CallFailed
        self._patience -= 1
        if self._rng.random() < self._slips:
            self._slip(list(arguments.values()))
        result = self._execute(ToolCall(name, arguments))
        if "error" in result and name != "report":
            raise _CallFailed
        return result

    def _slip(self, arguments: Sequence[str | int]) -> None:
        """Make a useless call: an offered tool that only reads, with any value seen so far."""
        offered = [t["function"]["name"] for t in self._query.tools]
        name = self._rng.choice([t for t in offered if t in TOOLS and not TOOLS[t].writes] or ["get_order"])
        pool = [str(v) for v in arguments] + list(self._last.values())
        parameters = TOOLS[name].schema["function"]["parameters"]["required"]
        self._execute(ToolCall(name, {p: self._rng.choice(pool) for p in parameters}))

    def _execute(self, call: ToolCall) -> dict[str, str]:
        result = self._session.call(call)
        self._steps.append(Step(call, result.status, result.observation))
        values: dict[str, Any] = json.loads(result.observation)
        self._last = {k: str(v) for k, v in values.items()}
        return self._last


def _trajectory(query: Query, steps: Sequence[Step], answer: str, solved: float) -> Trajectory:
    return Trajectory(
        trajectory_id=f"expert-{query.query_id}",
        query_id=query.query_id,
        environment=query.environment,
        tier=query.tier,
        policy="expert",
        round=-1,
        sample=0,
        temperature=0.0,
        messages=conversation(query.instruction, steps),
        input_ids=np.zeros(0, dtype=np.int32),
        spans=(),
        logprobs=np.zeros(0, dtype=np.float32),
        steps=tuple(steps),
        stop_reason=StopReason.FINISHED,
        final_answer=answer,
        solved=solved,
        seconds=0.0,
    )


def conversation(instruction: str, steps: Sequence[Step]) -> list[Message]:
    """The OpenAI messages of an instruction and the steps that followed."""
    messages: list[Message] = [{"role": "user", "content": instruction}]
    for step in steps:
        if step.call is None:
            raise ValueError("a demonstration cannot have a step without a call")
        messages.append(call_message(step.call))
        if step.status is not StepStatus.FINISH:
            messages.append(tool_message(step.call.name, step.observation))
    return messages


def desk_demonstrations(config: Config, queries: Sequence[Query]) -> list[Trajectory]:
    """Attempts of the hurried expert at the first training queries, as many as the warm start takes."""
    train = [q for q in queries if q.split == "train"]
    rng = random.Random(f"expert/{config.seed}")
    chosen = [
        train[i % len(train)] for i in rng.sample(range(len(train)), min(len(train), config.warm_start.demonstrations))
    ]
    return [Expert(q, rng, config.warm_start.slips, config.warm_start.shortcuts).attempt() for q in chosen]
