from datetime import UTC, datetime, timedelta, timezone

import pytest

from steptool.config import Config
from steptool.data.parsing import IngestError
from steptool.retraining.plan import RunOutcome, add_champion_and_base, make_run_id, plan_run
from steptool.retraining.promotion import describe_failure, describe_run

KICKOFF = datetime(2026, 11, 21, 2, tzinfo=UTC)


def make_plan(config, registry, token="1", force=False):
    return plan_run(config, registry, make_run_id(KICKOFF, token), KICKOFF, force)


def names(plan):
    return [source.place.rpartition("/")[2] for source in plan.new]


def test_a_first_night_starts_from_the_base_and_everything_is_new(config, registry, bring):
    bring("a.jsonl", "Who?"), bring("b.jsonl", "Where?")
    plan = make_plan(config, registry)
    assert (plan.sequence, plan.champion, plan.base, plan.files) == (0, "", "embedded", 2)
    assert names(plan) == ["a.jsonl", "b.jsonl"] and plan.due
    assert plan.configure(config).data.first == []  # where all is new nothing comes first


@pytest.mark.parametrize("result", ["promoted", "refused"])
def test_what_a_finished_run_has_seen_is_not_new(config, registry, bring, plan, decision, result):
    bring("a.jsonl", "Who?")
    first = make_plan(config, registry)
    registry.record_run(
        "1", describe_run(first, RunOutcome(result=result, reasons=["so"], decision=decision(True)), "page")
    )
    second = make_plan(config, registry)
    assert second.new == [] and not second.due and second.files == 1
    assert second.skip().reasons == ["nothing new in 1 source since the last finished run"]
    assert make_plan(config, registry, force=True).due

    bring("b.jsonl", "Where?")
    bring("a.jsonl", "Who?").rename(bring("z.jsonl", "").with_name("c.jsonl"))  # the same content under another name
    (bring("z.jsonl", "")).unlink()
    third = make_plan(config, registry)
    assert names(third) == ["b.jsonl"]
    assert third.configure(config).data.first == [third.new[0].sha256]
    bring("c.jsonl", "Who?", "When?")  # a file that grew is new as a whole
    assert names(make_plan(config, registry)) == ["b.jsonl", "c.jsonl"]


def test_what_failed_and_skipped_runs_have_seen_stays_new(config, registry, bring):
    bring("a.jsonl", "Who?")
    first = make_plan(config, registry)
    registry.record_run("1", describe_failure(KICKOFF, "no space left on device"))
    registry.record_run("2", describe_run(first, first.skip(), "page"))
    assert names(make_plan(config, registry)) == ["a.jsonl"]


def test_what_was_never_judged_since_somebody_was_promoted_meanwhile_stays_new(config, registry, bring):
    bring("a.jsonl", "Who?")
    stale = RunOutcome(result="refused", reasons=["stale comparison"], stale=True)
    registry.record_run("1", describe_run(make_plan(config, registry), stale, "page"))
    assert names(make_plan(config, registry)) == ["a.jsonl"]


def test_a_file_that_was_away_for_a_night_is_not_new_when_it_is_back(config, registry, bring, decision):
    outcome = RunOutcome(result="refused", reasons=["so"], decision=decision(False))
    content = bring("a.jsonl", "Who?").read_bytes()
    registry.record_run("1", describe_run(make_plan(config, registry), outcome, ""))
    bring("b.jsonl", "Where?").with_name("a.jsonl").unlink()
    registry.record_run("2", describe_run(make_plan(config, registry), outcome, ""))
    bring("a.jsonl", "").write_bytes(content)
    assert not make_plan(config, registry).due


def test_the_same_content_twice_is_new_once(config, registry, bring):
    bring("a.jsonl", "Who?"), bring("b.jsonl", "Who?")
    assert len(make_plan(config, registry).new) == 1


def test_training_starts_from_the_champion(config, registry, bring, model):
    bring("a.jsonl", "Who?")
    version = registry.publish(model("one"), {}).version_id
    registry.promote(version, after=0, reason="by hand")
    plan = make_plan(config, registry)
    assert (plan.sequence, plan.champion) == (1, version)
    assert plan.configure(config).policy.base == registry.model_place(version)


def test_the_embedded_world_is_new_once(registry, decision):
    config = Config()
    plan = make_plan(config, registry)
    assert [s.place for s in plan.new] == ["desk"]
    registry.record_run("1", describe_run(plan, RunOutcome(result="promoted", reasons=["better"]), ""))
    assert not make_plan(config, registry).due


def test_sources_that_are_not_there_are_refused(config, registry):
    with pytest.raises(IngestError, match=r"data\.paths: '.*tasks' does not exist"):
        make_plan(config, registry)


def test_a_run_is_named_by_its_kickoff_in_utc():
    at_home = datetime(2026, 11, 21, 3, 30, tzinfo=timezone(timedelta(hours=1)))
    assert make_run_id(at_home, "1a2b") == "20261121T023000Z-1a2b"


def test_the_champion_and_the_base_line_up_before_the_others(registry, model):
    config = Config.model_validate({"evaluation": {"policies": [{"name": "reference", "kind": "playback"}]}})
    assert [p.name for p in add_champion_and_base(config, registry).evaluation.policies] == ["base", "reference"]
    version = registry.publish(model("one"), {}).version_id
    registry.promote(version, after=0, reason="by hand")
    policies = add_champion_and_base(config, registry).evaluation.policies
    assert [(p.name, p.model) for p in policies] == [
        ("champion", registry.model_place(version)),
        ("base", "embedded"),
        ("reference", ""),
    ]
    scratch = config.model_copy(update={"policy": config.policy.model_copy(update={"base": "scratch"})})
    assert [p.name for p in add_champion_and_base(scratch, registry).evaluation.policies] == ["champion", "reference"]
