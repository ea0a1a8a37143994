"""Small real rows and trajectories for the report."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evaluation_rows import make_evaluation
from steptool.records import (
    Advantage,
    Evaluation,
    Metric,
    Query,
    Reference,
    Step,
    StepReward,
    StepStatus,
    StopReason,
    ToolCall,
    Trajectory,
)
from steptool.records.columns import from_row, to_row
from steptool.records.tables import to_table

Make = Callable[..., Any]


@pytest.fixture
def evaluation() -> Make:
    def make(query: str, model: str, passed: float, **other: Any) -> Evaluation:
        evaluation = make_evaluation(query, passed, model=model, **other)
        return from_row(to_table([to_row(evaluation)], Evaluation).to_pylist()[0], Evaluation)

    return make


@pytest.fixture
def results(evaluation: Make) -> Callable[..., list[Evaluation]]:
    """Greedy rows from one 0/1 string per model: the i-th character is the i-th task's verdict."""

    def make(**passed: str) -> list[Evaluation]:
        return [evaluation(f"q{i}", m, float(c)) for m, text in passed.items() for i, c in enumerate(text)]

    return make


@pytest.fixture
def trajectory() -> Make:
    """An episode from its steps' statuses; 4 sampled tokens a step."""

    def make(name: str, statuses: Sequence[str], solved: float | None = None, **other: Any) -> Trajectory:
        steps = [_step(StepStatus(s), other.get("observation", '{"status": "open"}')) for s in statuses]
        return Trajectory(
            trajectory_id=name,
            query_id=other.get("query", "q0"),
            environment="desk",
            tier="single",
            policy="policy",
            round=other.get("round", 0),
            sample=0,
            temperature=1.0,
            messages=[],
            input_ids=np.arange(10 * len(steps), dtype=np.int32),
            spans=[(10 * i, 10 * i + 4) for i in range(len(steps))],
            logprobs=np.full(4 * len(steps), -0.5, dtype=np.float32),
            steps=steps,
            stop_reason=StopReason.FINISHED,
            final_answer="42",
            solved=solved,
            seconds=0.2,
        )

    return make


def _step(status: StepStatus, observation: str) -> Step:
    if status is StepStatus.FINISH:
        return Step(ToolCall("Finish", {"return_type": "give_answer", "final_answer": "42"}), status, "")
    if status is StepStatus.MALFORMED:
        return Step(None, status, '{"error": "no call"}')
    return Step(ToolCall("get_order", {"order_id": "o1"}), status, observation)


@pytest.fixture
def reward() -> Make:
    def make(
        name: str, step: int, succ: float | None, contribution: float | None, solved: float | None = None
    ) -> StepReward:
        row = {
            "trajectory_id": name,
            "step": step,
            "annotator": "rules",
            "annotator_version": "1",
            "prompt_hash": "",
            "succ_calling": succ,
            "contribution": contribution,
            "is_solved": solved,
            "votes": "{}",
            "rationale": "",
        }
        return from_row(to_table([row], StepReward).to_pylist()[0], StepReward)

    return make


@pytest.fixture
def advantage() -> Make:
    def make(name: str, step: int, reward: float, advantage: float) -> Advantage:
        row = {"trajectory_id": name, "step": step, "reward": reward, "kl": 0.0, "value": 0.5, "advantage": advantage}
        return from_row(to_table([row], Advantage).to_pylist()[0], Advantage)

    return make


@pytest.fixture
def metric() -> Make:
    def make(stage: str, round: int, update: int, name: str, value: float) -> Metric:
        row = {"stage": stage, "round": round, "update": update, "name": name, "value": value}
        return from_row(to_table([row], Metric).to_pylist()[0], Metric)

    return make


@pytest.fixture
def query() -> Make:
    def make(name: str = "q0", instruction: str = "where is order o1?") -> Query:
        return Query(name, "heldout", "desk", instruction, (), Reference("42"), "", "single")

    return make
