from datetime import UTC, datetime
from typing import Any

from steptool.report.evaluation_page import build_retraining_page
from steptool.retraining.plan import Criterion, Decision, Result, RetrainingPlan, RunOutcome


def make_plan(**changes: Any) -> RetrainingPlan:
    """A plan with one new file of three and no champion."""
    new = [{"place": "a.jsonl", "size": 7, "sha256": "ab" * 32}]
    kickoff = datetime(2026, 11, 21, 2, tzinfo=UTC)
    fields = {"run_id": "20261121T020000Z-1", "kickoff": kickoff, "sequence": 0, "champion": "", "base": "embedded"}
    return RetrainingPlan.model_validate(fields | {"new": new, "files": 3, "forced": False} | changes)


def test_the_page_of_a_refusal_shows_each_part_of_the_rule() -> None:
    gain = Criterion(
        name="gain in pass rate",
        passed=False,
        statement="1 point",
        tasks=60,
        measured=True,
        mean=0.01,
        low=-0.1,
        high=0.1,
    )
    tasks = Criterion(name="held-out tasks", passed=True, statement="60 in the comparison", tasks=60)
    decision = Decision(criteria=[tasks, gain], left_out=3)
    outcome = RunOutcome(result=Result.REFUSED, reasons=decision.reasons, decision=decision)
    html = build_retraining_page(make_plan(champion="20261120T020000Z-11111111"), outcome, "training/report.html")
    for text in (
        "The model in service stays",
        "20261120T020000Z-11111111",
        "<li>gain in pass rate: 1 point</li>",
        '<th scope="row">held-out tasks</th><td class="text good">yes</td>',
        '<th scope="row">gain in pass rate</th><td class="text bad">no</td>',
        "3 held-out tasks do not count",
        'href="training/report.html"',
        "1 of 3 files had content that no finished run had seen",
        "a.jsonl",
        "<svg",
    ):
        assert text in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html  # no network


def test_the_page_of_a_skip_has_no_figures() -> None:
    idle = make_plan(new=[])
    html = build_retraining_page(idle, idle.skip(), "")
    assert "Nothing new: nothing was trained" in html and "embedded (no champion yet)" in html
    assert "<svg" not in html and "report of the training" not in html


def test_names_of_files_are_only_text_on_the_page() -> None:
    odd = make_plan(new=[{"place": "<script>x</script>", "size": 1, "sha256": "0" * 64}])
    assert "<script>x" not in build_retraining_page(odd, odd.skip(), "")
