"""The section on trust and the page of its own, from real rules on real episodes."""

from dataclasses import replace

import pytest

from steptool.report.rewards_page import build_rewards_page, build_section, write_sentences
from steptool.rewards.audit_figures import Audit
from steptool.rewards.statistics import Redundancy


def test_the_figures_are_said_in_plain_words(audited: Audit) -> None:
    text = " ".join(write_sentences(audited))
    assert text.startswith("rules 1 scored 36 steps of 12 episodes; no score is missing.")
    assert "rules 1 and judge 1 agree on 75% of 24 steps" in text
    assert "the solved one has the higher mean Contribution in 100% of the pairs" in text
    assert "SuccCalling" in text.split("Against the earlier run these have shifted:")[1]


@pytest.mark.parametrize(
    ("mean_reward", "sentence"),
    [
        (
            0.25,
            "4 of 20 calls repeat an earlier one and bring nothing new; each earns 0.25 on average. rewards.redundant_",
        ),
        (-0.15, "4 of 20 calls repeat an earlier one and bring nothing new; each costs 0.15 on average."),
        (None, "4 of 20 calls repeat an earlier one and bring nothing new."),
    ],
)
def test_a_cost_of_redundant_calls_is_proposed_where_they_earn(
    audited: Audit, mean_reward: float | None, sentence: str
) -> None:
    sentences = list(write_sentences(replace(audited, redundancy=Redundancy(20, 4, mean_reward))))
    (own,) = (text for text in sentences if text.startswith("4 of 20 calls"))
    assert own.startswith(sentence)
    assert ("rewards.redundant_cost" in own) == (mean_reward == 0.25)


def test_the_page_stands_alone_and_hostile_text_stays_text(audited: Audit) -> None:
    html = build_rewards_page(audited)
    assert html.startswith("<!doctype html>") and html.count("<script") == 1
    assert "&lt;/script&gt;&lt;script&gt;" in html
    assert "https://" not in html and html.count("<svg") >= 4
    for words in ("Do annotators agree?", "Reward by number of steps", "Where annotators differ most", "get_order"):
        assert words in html


def test_later_rounds_show_as_curves(audited: Audit) -> None:
    alone, several = (build_section(dict.fromkeys(range(n), audited)) for n in (1, 3))
    assert len(several["charts"]) == len(alone["charts"]) + 2
    assert "Agreement over rounds" in "".join(several["charts"])
