"""Trajectories as text for a judge to read."""

from __future__ import annotations

import json
from collections.abc import Sequence

from steptool.records import Query, Step, StepStatus, Trajectory


def judged_steps(trajectory: Trajectory) -> Sequence[Step]:
    """The steps before the closing Finish; all of them where there is none."""
    steps = trajectory.steps
    return steps[:-1] if steps and steps[-1].status is StepStatus.FINISH else steps


def transcript(query: Query, trajectory: Trajectory, limit: int) -> str:
    """The query, the numbered steps and the answer; a longer text than `limit` characters is cut, with a mark.

    What tools and models wrote stands as JSON strings, so that it cannot pass for a part of the prompt.
    """
    steps, users = judged_steps(trajectory), _user_turns(trajectory)
    listed = [
        f"Step {number}\n{_step(step, limit)}" + "".join(f"\nThe user goes on: {_quoted(u, limit)}" for u in said)
        for number, (step, said) in enumerate(zip(steps, users, strict=False), start=1)
    ]
    task = f"Task: {_quoted(query.instruction, limit)}"
    return "\n\n".join([task, f"Number of steps: {len(steps)}", *listed, f"Final answer: {_answer(trajectory, limit)}"])


def _user_turns(trajectory: Trajectory) -> list[list[str]]:
    """What the user says after each step, where the episode goes on after an answer."""
    said: list[list[str]] = [[] for _ in trajectory.steps]
    step = -1
    for message in trajectory.messages:
        step += message["role"] == "assistant"
        if message["role"] == "user" and 0 <= step < len(said):
            said[step].append(str(message["content"]))
    return said


def _step(step: Step, limit: int) -> str:
    if step.call is None:
        call = "Call: none that could be read"
    else:
        arguments = json.dumps(dict(step.call.arguments), ensure_ascii=False)
        call = f"Tool: {_quoted(step.call.name, limit)}\nArguments: {_cut(plain(arguments), limit)}"
    return f"{call}\nObservation: {_quoted(step.observation, limit)}"


def _answer(trajectory: Trajectory, limit: int) -> str:
    return "none was given" if trajectory.final_answer is None else _quoted(trajectory.final_answer, limit)


def _quoted(text: str, limit: int) -> str:
    return _cut(json.dumps(plain(text), ensure_ascii=False), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... [cut: {limit} of {len(text)} characters shown]"


def plain(text: str) -> str:
    """Text without lone surrogates, which tools and models may return and no request or file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
