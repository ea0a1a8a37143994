import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from evaluation_rows import make_evaluation
from steptool.config import Config
from steptool.retraining.plan import Result, RunOutcome
from steptool.retraining.promotion import (
    copy_model,
    describe_failure,
    describe_run,
    describe_version,
    find_cause,
    settle,
)


@pytest.fixture
def end_run(registry, plan, decision, model):
    """`end_run(name, ...)`: the outcome of a run with this challenger."""

    def end(name, promote=True, approved=True, **changes):
        return settle(registry, plan(**changes), decision(promote), approved, model(name), {})

    return end


def test_what_the_rule_refuses_is_not_published(registry, end_run):
    outcome = end_run("one", promote=False)
    assert outcome.result is Result.REFUSED and outcome.version == ""
    assert outcome.reasons == [
        "gain in pass rate: 30 points on 60 tasks (95% interval 20 to 40); its lower end has to be above 0"
    ]
    assert registry.versions() == [] and registry.champion() is None


def test_a_persons_no_is_a_refusal(registry, end_run):
    outcome = end_run("one", approved=False)
    assert (outcome.result, outcome.reasons) == (Result.REFUSED, ["approval: a person said no"])
    assert registry.champion() is None


def test_a_better_model_takes_over_from_the_one_that_it_was_compared_with(registry, end_run):
    first = end_run("one")
    assert first.result is Result.PROMOTED and registry.champion().version_id == first.version
    second = end_run("two", sequence=1, champion=first.version)
    assert [c.version_id for c in registry.history()] == [first.version, second.version]
    assert registry.champion().reason.startswith("run 20261121T020000Z-1: gain in pass rate: 30 points")


def test_a_challenger_that_was_compared_with_a_former_champion_is_refused(registry, end_run):
    first = end_run("one")
    late = end_run("two")  # this run began before the first was promoted
    assert late.result is Result.REFUSED and late.stale and not first.stale
    (reason,) = late.reasons
    assert reason.startswith("stale comparison: number 0 is no longer the champion") and first.version in reason
    assert registry.champion().version_id == first.version
    assert late.version in [v.version_id for v in registry.versions()]  # it can still be promoted by hand


def test_a_roll_back_during_the_run_makes_the_comparison_stale(registry, end_run):
    first = end_run("one")
    second = end_run("two", sequence=1)
    registry.roll_back()
    assert end_run("three", sequence=2).result is Result.REFUSED
    assert registry.champion().version_id == first.version != second.version


def test_a_second_attempt_after_the_promotion_changes_nothing(registry, end_run):
    assert end_run("one") == end_run("one")
    assert len(registry.history()) == 1 and registry.verify() == []
    end_run("two", sequence=1)
    assert end_run("one").result is Result.PROMOTED  # it was promoted, whatever followed
    assert len(registry.history()) == 2


def test_a_version_says_what_it_was_made_from_and_what_it_was_measured_at(registry, plan, decision, model):
    rows = [
        make_evaluation(f"q{n}", float(n < solved), model=name, decoding=decoding)
        for name, solved in (("base", 1), ("steptool", 3))
        for decoding in ("greedy", "sampled")
        for n in range(4)
    ]
    document = describe_version(Config(), plan(), decision(True), rows, "c0de")
    version = registry.publish(model("one"), document)
    metadata = json.loads(json.dumps(version.metadata))
    assert {name: (r["pass_rate"], r["tasks"]) for name, r in metadata["results"].items()} == {
        "champion": (0.25, 4),
        "challenger": (0.75, 4),
    }
    assert (
        metadata["run_id"] == "20261121T020000Z-1"
        and metadata["trained_from"] == "embedded"
        and metadata["code_version"] == "c0de"
    )
    assert metadata["new_data"] == [{"place": "a.jsonl", "size": 7, "sha256": "ab" * 32}]
    assert metadata["config"]["policy"]["base"] == "embedded" and metadata["decision"]["criteria"][0]["low"] == 0.2


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
        ("", "the error has no message"),
    ],
)
def test_the_cause_is_the_line_that_says_what_went_wrong(message, expected):
    assert find_cause(message) == expected


def test_a_failed_run_counts_as_having_seen_no_data():
    document = describe_failure(datetime(2026, 11, 21, 2, tzinfo=UTC), "lost")
    assert document == {"kickoff": "2026-11-21T02:00:00+00:00", "result": "failed", "reasons": ["lost"], "new": []}


def test_a_run_is_recorded_with_all_its_figures(plan, decision):
    outcome = RunOutcome(result=Result.PROMOTED, reasons=["better"], version="v1", decision=decision(True))
    document = describe_run(plan(), outcome, "runs/page.html")
    assert json.loads(json.dumps(document)) == document
    assert (document["run_id"], document["kickoff"], document["result"]) == (
        "20261121T020000Z-1",
        "2026-11-21T02:00:00Z",
        "promoted",
    )
    assert document["new"][0]["sha256"] == "ab" * 32 and document["decision"]["criteria"][0]["mean"] == 0.3
    assert document["page"] == "runs/page.html" and document["version"] == "v1"


@pytest.mark.parametrize("elsewhere", [None, Path("/dev/shm")], ids=["same file system", "another file system"])
def test_a_model_is_copied_to_any_file_system(tmp_path: Path, elsewhere: Path | None) -> None:
    if elsewhere and (not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev):
        pytest.skip("no second file system here")
    (tmp_path / "model" / "training").mkdir(parents=True)
    (tmp_path / "model" / "training" / "state").write_bytes(b"weights")
    with tempfile.TemporaryDirectory(dir=elsewhere or tmp_path) as folder:
        copy_model(tmp_path / "model", Path(folder))
        assert (Path(folder) / "training" / "state").read_bytes() == b"weights"
