"""What the embedded base model brings: it carries out errands, and does not know the desk's procedures."""

from pathlib import Path

import pytest

from steptool.config import Config
from steptool.environments.desk import tasks
from steptool.environments.desk.goals import PLAIN
from steptool.pipeline.episodes import evaluate
from steptool.records import Query

BASE = Path(tasks.__file__).parent / "base"


@pytest.fixture
def greedy() -> Config:
    return Config.model_validate({"evaluation": {"sampled_repeats": 0}})


def _without_conditions(tier: str, count: int) -> list[Query]:
    queries = (tasks.draw_query(tasks.ERRAND, tier, f"base{i}") for i in range(10_000))
    plain = (q for q in queries if all(goal[0] in PLAIN for goal in q.reference.environment["goals"]))
    return [query for query, _ in zip(plain, range(count), strict=False)]


@pytest.mark.parametrize(("tier", "at_least"), [(tasks.SINGLE, 29), (tasks.LONG, 26)])
def test_the_base_model_carries_out_errands_without_conditions(greedy: Config, tier: str, at_least: int):
    rows = evaluate(BASE, _without_conditions(tier, 30), greedy).rows
    assert sum(row.passed for row in rows) >= at_least


@pytest.mark.parametrize("tier", [tasks.SINGLE, tasks.LONG])
def test_the_base_model_does_not_know_the_procedures_of_the_desk(greedy: Config, tier: str):
    queries = [tasks.draw_query("validation", tier, f"base{i}") for i in range(30)]
    assert sum(row.passed for row in evaluate(BASE, queries, greedy).rows) <= 3
