from datetime import UTC, datetime, timedelta, timezone

import pytest

from steptool.config import Config
from steptool.data.intake import IngestError
from steptool.retraining.plan import plan, run_id
from steptool.retraining.record import document, failure

KICKOFF = datetime(2026, 11, 21, 2, tzinfo=UTC)


def look(config, registry, token="1", force=False):
    return plan(config, registry, run_id(KICKOFF, token), KICKOFF, force)


def names(night):
    return [source.place.rpartition("/")[2] for source in night.new]


def test_a_first_night_starts_from_the_base_and_everything_is_new(config, registry, bring):
    bring("a.jsonl", "Who?"), bring("b.jsonl", "Where?")
    night = look(config, registry)
    assert (night.sequence, night.champion, night.base, night.files) == (0, "", "embedded", 2)
    assert names(night) == ["a.jsonl", "b.jsonl"] and night.due
    assert night.config(config).data.first == []  # where all is new nothing comes first


@pytest.mark.parametrize("result", ["promoted", "refused"])
def test_what_a_finished_run_has_seen_is_not_new(config, registry, bring, night, decision, result):
    from steptool.retraining.outcome import RunOutcome

    bring("a.jsonl", "Who?")
    first = look(config, registry)
    registry.record_run(
        "1", document(first, RunOutcome(result=result, reasons=["so"], decision=decision(True)), "page")
    )
    second = look(config, registry)
    assert second.new == [] and not second.due and second.files == 1
    assert second.skipped().reasons == ["nothing new in 1 source since the last finished run"]
    assert look(config, registry, force=True).due

    bring("b.jsonl", "Where?")
    bring("a.jsonl", "Who?").rename(bring("z.jsonl", "").with_name("c.jsonl"))  # the same content under another name
    (bring("z.jsonl", "")).unlink()
    third = look(config, registry)
    assert names(third) == ["b.jsonl"]
    assert third.config(config).data.first == [third.new[0].sha256]
    bring("c.jsonl", "Who?", "When?")  # a file that grew is new as a whole
    assert names(look(config, registry)) == ["b.jsonl", "c.jsonl"]


def test_what_failed_and_skipped_runs_have_seen_stays_new(config, registry, bring):
    bring("a.jsonl", "Who?")
    first = look(config, registry)
    registry.record_run("1", failure(KICKOFF, "no space left on device"))
    registry.record_run("2", document(first, first.skipped(), "page"))
    assert names(look(config, registry)) == ["a.jsonl"]


def test_what_was_never_judged_since_somebody_was_promoted_meanwhile_stays_new(config, registry, bring):
    from steptool.retraining.outcome import RunOutcome

    bring("a.jsonl", "Who?")
    stale = RunOutcome(result="refused", reasons=["stale comparison"], stale=True)
    registry.record_run("1", document(look(config, registry), stale, "page"))
    assert names(look(config, registry)) == ["a.jsonl"]


def test_a_file_that_was_away_for_a_night_is_not_new_when_it_is_back(config, registry, bring, decision):
    from steptool.retraining.outcome import RunOutcome

    done = RunOutcome(result="refused", reasons=["so"], decision=decision(False))
    content = bring("a.jsonl", "Who?").read_bytes()
    registry.record_run("1", document(look(config, registry), done, ""))
    bring("b.jsonl", "Where?").with_name("a.jsonl").unlink()
    registry.record_run("2", document(look(config, registry), done, ""))
    bring("a.jsonl", "").write_bytes(content)
    assert not look(config, registry).due


def test_the_same_content_twice_is_new_once(config, registry, bring):
    bring("a.jsonl", "Who?"), bring("b.jsonl", "Who?")
    assert len(look(config, registry).new) == 1


def test_training_starts_from_the_champion(config, registry, bring, model):
    bring("a.jsonl", "Who?")
    version = registry.publish(model("one"), {}).version_id
    registry.promote(version, after=0, reason="by hand")
    night = look(config, registry)
    assert (night.sequence, night.champion) == (1, version)
    assert night.config(config).policy.base == registry.model_place(version)


def test_the_embedded_world_is_new_once(registry, decision):
    from steptool.retraining.outcome import RunOutcome

    config = Config()
    night = look(config, registry)
    assert [s.place for s in night.new] == ["desk"]
    registry.record_run("1", document(night, RunOutcome(result="promoted", reasons=["better"]), ""))
    assert not look(config, registry).due


def test_sources_that_are_not_there_are_refused(config, registry):
    with pytest.raises(IngestError, match=r"data\.paths: '.*tasks' does not exist"):
        look(config, registry)


def test_a_run_is_named_by_its_kickoff_in_utc():
    at_home = datetime(2026, 11, 21, 3, 30, tzinfo=timezone(timedelta(hours=1)))
    assert run_id(at_home, "1a2b") == "20261121T023000Z-1a2b"
