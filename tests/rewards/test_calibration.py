"""The annotator `rules` against the environments' truth: reference solutions as they are, and disturbed."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from steptool.config import ToolsConfig, load_config
from steptool.data.ingest import ingest
from steptool.environments.base import Environment
from steptool.environments.bfcl_tasks import is_installed
from steptool.environments.functions.environment import FunctionsEnvironment
from steptool.policies.text_policies import list_reference_calls, play_back
from steptool.records import FINISH, Query, ToolCall
from steptool.records.episodes import read_queries
from steptool.rewards.annotators import annotate, make_annotator
from steptool.rewards.statistics import confusion, kappa

ROOT = Path(__file__).parents[2]


def disturb(calls: Sequence[ToolCall]) -> list[list[ToolCall]]:
    """The calls as they are, with one of them made twice, and without the first one."""
    rng = random.Random(len(calls))
    places = [place for place, call in enumerate(calls) if call.name != FINISH]
    again = rng.choice(places)
    return [list(calls), [*calls[: again + 1], *calls[again:]], list(calls[1:])]


def agreement(queries: Sequence[Query], environment: Environment) -> float:
    """Cohen's kappa of rules and truth on whether a step contributes."""
    recordings = [(query, calls) for query in queries for calls in disturb(list_reference_calls(query))]
    episodes = play_back(recordings, environment, limits=ToolsConfig())
    actual, truth = (annotate(queries, episodes, make_annotator(name)) for name in ("rules", "truth"))
    pairs = [
        (one.contribution >= 0.5, other.contribution >= 0.5)
        for one, other in zip(actual, truth, strict=True)
        if one.contribution is not None and other.contribution is not None
    ]
    estimate = kappa(confusion([one for one, _ in pairs], [other for _, other in pairs]))
    assert estimate is not None
    return estimate.value


def test_rules_agree_with_the_shop_where_the_goal_is_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "functions.yaml")
    queries = read_queries(ingest(config, tmp_path / "out").queries_path)
    assert agreement(queries, FunctionsEnvironment(config.tools.functions)) > 0.75


@pytest.mark.skipif(not is_installed(), reason="the package bfcl-eval is not installed: make bfcl")
def test_rules_agree_with_bfcl_where_the_goal_is_a_state() -> None:
    from steptool.environments.bfcl import BfclEnvironment
    from steptool.environments.bfcl_tasks import read_bfcl_queries

    assert agreement(read_bfcl_queries()[:60], BfclEnvironment()) > 0.4
