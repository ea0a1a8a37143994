"""Small real trajectories for the annotators."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from steptool.records import FINISH, Query, Step, StepStatus, StopReason, ToolCall, Trajectory

QUERY = Query("q1", "train", "desk", "cancel the last order of mira chen", ())


@pytest.fixture
def make_query() -> Callable[..., Query]:
    def make(**changes: Any) -> Query:
        return replace(QUERY, **changes)

    return make


@pytest.fixture
def make_step() -> Callable[..., Step]:
    def make(name: str, observation: Any, status: StepStatus = StepStatus.OK, /, **arguments: Any) -> Step:
        text = observation if isinstance(observation, str) else json.dumps(observation)
        return Step(ToolCall(name, arguments), status, text)

    return make


@pytest.fixture
def make_trajectory() -> Callable[..., Trajectory]:
    def make(steps: Sequence[Step], answer: str | None = None, **changes: Any) -> Trajectory:
        """The steps, and a Finish with the answer if there is one."""
        finish = Step(ToolCall(FINISH, {"return_type": "give_answer", "final_answer": answer}), StepStatus.FINISH, "")
        made = (*steps, *([] if answer is None else [finish]))
        trajectory = Trajectory(
            trajectory_id="t1",
            query_id="q1",
            environment="desk",
            tier="single",
            policy="p",
            round=0,
            sample=0,
            temperature=1.0,
            messages=[],
            input_ids=np.zeros(0, dtype=np.int32),
            spans=[],
            logprobs=np.zeros(0, dtype=np.float32),
            steps=made,
            stop_reason=StopReason.STEP_LIMIT if answer is None else StopReason.FINISHED,
            final_answer=answer,
            solved=None,
            seconds=0.5,
        )
        return replace(trajectory, **changes)

    return make
