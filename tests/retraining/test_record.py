import json
from datetime import UTC, datetime

import pytest

from steptool.report.retraining_page import retraining_page
from steptool.retraining.outcome import Criterion, Decision, Result, RunOutcome
from steptool.retraining.record import cause, document, failure

IN_A_POD = """Trace:

    Traceback (most recent call last):
      File "x.py", line 1, in <module>
    steptool.config.ConfigError: policy.base: no such model

Message:

    ConfigError: policy.base: no such model; name another
      second line of the message
"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no such file", "no such file"),
        ("Error encountered while executing 'ingest':\n  a.jsonl, line 3: not JSON\nmore", "a.jsonl, line 3: not JSON"),
        ("Error encountered while executing 'a':\n  Error encountered while executing 'b':\n  lost", "lost"),
        (IN_A_POD, "ConfigError: policy.base: no such model; name another"),
        ("", "the cause was not told"),
    ],
)
def test_the_cause_is_the_line_that_says_what_went_wrong(message, expected):
    assert cause(message) == expected


def test_a_failure_has_seen_nothing():
    told = failure(datetime(2026, 11, 21, 2, tzinfo=UTC), "lost")
    assert told == {"kickoff": "2026-11-21T02:00:00+00:00", "result": "failed", "reasons": ["lost"], "new": []}


def test_a_run_is_kept_with_all_its_figures(night, decision):
    ending = RunOutcome(result=Result.PROMOTED, reasons=["better"], version="v1", decision=decision(True))
    told = document(night(), ending, "runs/page.html")
    assert json.loads(json.dumps(told)) == told
    assert (told["run_id"], told["kickoff"], told["result"]) == (
        "20261121T020000Z-1",
        "2026-11-21T02:00:00Z",
        "promoted",
    )
    assert told["new"][0]["sha256"] == "ab" * 32 and told["decision"]["criteria"][0]["mean"] == 0.3
    assert told["page"] == "runs/page.html" and told["version"] == "v1"


def test_the_page_of_a_refusal_shows_each_part_of_the_rule(night):
    gain = Criterion(
        name="gain in pass rate", passed=False, said="1 point", tasks=60, measured=True, mean=0.01, low=-0.1, high=0.1
    )
    tasks = Criterion(name="held-out tasks", passed=True, said="60 in the comparison", tasks=60)
    decision = Decision(criteria=[tasks, gain], left_out=3)
    ending = RunOutcome(result=Result.REFUSED, reasons=decision.reasons, decision=decision)
    html = retraining_page(night(champion="20261120T020000Z-11111111"), ending, "training/report.html")
    for shown in (
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
        assert shown in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html  # no network


def test_the_page_of_a_skip_has_no_figures(night):
    idle = night(new=[])
    html = retraining_page(idle, idle.skipped(), "")
    assert "Nothing new: nothing was trained" in html and "embedded (no champion yet)" in html
    assert "<svg" not in html and "report of the training" not in html


def test_names_of_files_are_only_text_on_the_page(night):
    odd = night(new=[{"place": "<script>x</script>", "size": 1, "sha256": "0" * 64}])
    assert "<script>x" not in retraining_page(odd, odd.skipped(), "")
