"""Small real rows and trajectories for the report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from browser import Browser, browser_command
from evaluation_rows import make_evaluation
from steptool.config import Config, RewardConfig
from steptool.records import (
    Advantage,
    Cost,
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
from steptool.report.run_inputs import EpisodePair, ReportInputs, ScoredEpisode
from steptool.rewards.audit import audit
from steptool.rewards.audit_figures import Audit
from steptool.rewards.statistics import FarmingPoint

Make = Callable[..., Any]
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & <b>"\' \u2028 ünï 数'
B = TypeVar("B", bound=Browser)


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[type[B]], B]]:
    """Opens a browser of a class; without one on this machine the test is skipped."""
    opened: list[Browser] = []

    def make(cls: type[B]) -> B:
        command = browser_command(tmp_path_factory.mktemp("user"))
        if command is None:
            pytest.skip("no browser: make test-pages brings one")
        browser = cls(command)
        opened.append(browser)
        return browser

    yield make
    for browser in opened:
        browser.close()


@pytest.fixture(scope="module")
def browser(open_browser: Callable[[type[Browser]], Browser]) -> Browser:
    return open_browser(Browser)


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


@pytest.fixture
def full(
    results: Make, evaluation: Make, metric: Make, trajectory: Make, reward: Make, advantage: Make, query: Make
) -> ReportInputs:
    """A run of two rounds with everything a page can show, hostile text included."""
    rows = results(base="0" * 10, warm_start="1" * 3 + "0" * 7, steptool="1" * 9 + "0")
    rows += [
        evaluation(f"q{i}", m, 1.0, decoding="sampled", tier="long")
        for i in range(3)
        for m in ("warm_start", "steptool")
    ]
    before = trajectory("a", ["tool_error", "malformed", "finish"], 0.0, observation=HOSTILE)
    after = trajectory("b", ["ok", "finish"], 1.0, observation="long " * 300)
    scores = [reward("b", 0, 1, 0.6), reward("b", 1, 1, None, 1.0)]
    example = EpisodePair(
        query("q0", HOSTILE), ScoredEpisode(before), ScoredEpisode(after, scores, [advantage("b", 0, 0.18, 0.75)])
    )
    plain = EpisodePair(query("q1", "a plain task"), ScoredEpisode(after), ScoredEpisode(after))
    summary = {"episodes": 96, "verdicts": 96, "mean_steps": 4.5, "mean_reward": 0.5, "succ_calling": 0.9}
    more = {"contribution": 0.4, "is_solved": 0.5, "idle_call_rate": 0.25, "invalid_call_rate": 0.125}
    return ReportInputs(
        title=f"A run {HOSTILE}",
        config=Config(rewards=RewardConfig(step_weight=0.3, alpha=0.3)).model_dump(mode="json") | {"note": HOSTILE},
        evaluations=rows,
        metrics=[
            *(
                metric("ppo", r, u, n, 0.1 * r + u)
                for r in (0, 1)
                for u in (0, 1)
                for n in ("kl", "entropy", "gradient")
            ),
            *(metric("warm_start", -1, u, "loss", 2.0 / (u + 1)) for u in range(60)),
        ],
        rollouts=[{"round": r, "pass_rate": 0.25 + r / 2, "missing": 3 * r, **summary, **more} for r in (0, 1)],
        farming={r: [FarmingPoint(n, 4 * n, 0.1 * n, float(n > 3)) for n in (2, 3, 4, 5)] for r in (0, 1)},
        costs=[
            Cost("rollout", 0, 12.5, 5000, 900.0),
            Cost("rollout", 1, 7.5, 5000, 1000.0),
            Cost("ppo", 0, 20.0, 0, 800.0),
        ],
        examples=[example, plain],
        counts={"ingest": {"queries read": 1200, "queries dropped: no tools": 17}},
        notes=["The judge was not asked.", HOSTILE],
    )


@pytest.fixture
def audited(trajectory: Make, reward: Make, query: Make) -> Audit:
    """Twelve episodes, half of them solved; the second annotator disagrees on three steps."""
    episodes, rows = [], []
    for n in range(12):
        name, solved = f"t{n}", float(n % 2)
        episodes.append(trajectory(name, ["ok"] * (1 + n % 3) + ["finish"], solved, observation=HOSTILE))
        for step in range(1 + n % 3):
            rows.append(reward(name, step, 1.0, solved))
            rows.append(replace(reward(name, step, 1.0, solved if n > 2 else 1 - solved), annotator="judge"))
        rows += [reward(name, 1 + n % 3, 1.0, None, solved)]
        rows += [replace(reward(name, 1 + n % 3, 1.0, None, solved), annotator="judge")]
    queries: dict[str, Query] = {"q0": query()}
    return audit(queries, episodes, rows, RewardConfig(), [reward("old", 0, 0.0, 0.0)] * 10)
