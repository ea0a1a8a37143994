"""The section on trust and the page of its own, from real rules on real episodes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from steptool.config import RewardConfig
from steptool.records import Query
from steptool.report.rewards_page import rewards_page, section, sentences
from steptool.rewards.audit import audit
from steptool.rewards.audit_figures import Audit

HOSTILE = '</pre><script>document.title="owned"</script>'
Make = Callable[..., Any]


@pytest.fixture
def result(trajectory: Make, reward: Make, query: Make) -> Audit:
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


def test_the_figures_are_said_in_plain_words(result: Audit) -> None:
    text = " ".join(sentences(result))
    assert text.startswith("rules 1 scored 36 steps of 12 episodes; no score is missing.")
    assert "rules 1 and judge 1 agree on 75% of 24 steps" in text
    assert "the solved one has the higher mean Contribution in 100% of the pairs" in text
    assert "SuccCalling" in text.split("Against the earlier run these have shifted:")[1]


def test_the_page_stands_alone_and_hostile_text_stays_text(result: Audit) -> None:
    html = rewards_page(result)
    assert html.startswith("<!doctype html>") and html.count("<script") == 0
    assert "&lt;/pre&gt;&lt;script&gt;" in html
    assert "https://" not in html and html.count("<svg") >= 4
    for words in ("Do annotators agree?", "Reward by number of steps", "Where annotators differ most", "get_order"):
        assert words in html


def test_later_rounds_show_as_curves(result: Audit) -> None:
    alone, several = (section(dict.fromkeys(range(n), result)) for n in (1, 3))
    assert len(several["charts"]) == len(alone["charts"]) + 2
    assert "Agreement over rounds" in "".join(several["charts"])
