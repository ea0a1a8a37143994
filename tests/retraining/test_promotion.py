import json

import pytest

from steptool.config import Config
from steptool.records import Query
from steptool.retraining import contamination as exposure
from steptool.retraining.lineup import line_up
from steptool.retraining.outcome import Result
from steptool.retraining.promotion import described, settle


@pytest.fixture
def tell(registry, night, decision, model):
    """`tell(name, ...)`: how a night with this challenger ends."""

    def end(name, promote=True, approved=True, **changes):
        return settle(registry, night(**changes), decision(promote), approved, model(name), {})

    return end


def test_what_the_rule_refuses_is_not_published(registry, tell):
    ending = tell("one", promote=False)
    assert ending.result is Result.REFUSED and ending.version == ""
    assert ending.reasons == [
        "gain in pass rate: 30 points on 60 tasks (95% interval 20 to 40); its lower end has to be above 0"
    ]
    assert registry.versions() == [] and registry.champion() is None


def test_a_persons_no_is_a_refusal(registry, tell):
    ending = tell("one", approved=False)
    assert (ending.result, ending.reasons) == (Result.REFUSED, ["approval: a person said no"])
    assert registry.champion() is None


def test_a_better_model_takes_over_from_the_one_that_it_was_compared_with(registry, tell):
    first = tell("one")
    assert first.result is Result.PROMOTED and registry.champion().version_id == first.version
    second = tell("two", sequence=1, champion=first.version)
    assert [c.version_id for c in registry.history()] == [first.version, second.version]
    assert registry.champion().reason.startswith("run 20261121T020000Z-1: gain in pass rate: 30 points")


def test_who_was_compared_with_a_former_champion_is_refused(registry, tell):
    first = tell("one")
    late = tell("two")  # this night began before the first was promoted
    assert late.result is Result.REFUSED and late.stale and not first.stale
    (reason,) = late.reasons
    assert reason.startswith("stale comparison: number 0 is no longer the champion") and first.version in reason
    assert registry.champion().version_id == first.version
    assert late.version in [v.version_id for v in registry.versions()]  # it can still be promoted by hand


def test_a_roll_back_in_the_night_makes_the_comparison_stale(registry, tell):
    first = tell("one")
    second = tell("two", sequence=1)
    registry.roll_back()
    assert tell("three", sequence=2).result is Result.REFUSED
    assert registry.champion().version_id == first.version != second.version


def test_a_second_attempt_after_the_promotion_changes_nothing(registry, tell):
    assert tell("one") == tell("one")
    assert len(registry.history()) == 1 and registry.verify() == []
    tell("two", sequence=1)
    assert tell("one").result is Result.PROMOTED  # it was, whoever followed
    assert len(registry.history()) == 2


def test_a_version_says_what_it_was_made_from_and_what_it_was_measured_at(registry, night, decision, model):
    rows = [
        {"model": name, "decoding": decoding, "query_id": f"q{n}", "passed": float(n < solved)}
        for name, solved in (("base", 1), ("steptool", 3))
        for decoding in ("greedy", "sampled")
        for n in range(4)
    ]
    told = described(Config(), night(), decision(True), rows, "c0de")
    version = registry.publish(model("one"), told)
    kept = json.loads(json.dumps(version.metadata))
    assert {name: (r["pass_rate"], r["tasks"]) for name, r in kept["results"].items()} == {
        "champion": (0.25, 4),
        "challenger": (0.75, 4),
    }
    assert (
        kept["run_id"] == "20261121T020000Z-1" and kept["trained_from"] == "embedded" and kept["code_version"] == "c0de"
    )
    assert kept["new_data"] == [{"place": "a.jsonl", "size": 7, "sha256": "ab" * 32}]
    assert kept["config"]["policy"]["base"] == "embedded" and kept["decision"]["criteria"][0]["low"] == 0.2


def query(text, split="train"):
    return Query(f"id of {text}", split, "desk", text, ())


def test_a_model_knows_what_it_and_its_forebears_were_trained_on(tmp_path):
    assert exposure.trained_on(str(tmp_path)) == frozenset()
    exposure.note(tmp_path, [query("a"), query("b", "heldout")], frozenset())
    first = exposure.trained_on(str(tmp_path))
    exposure.note(tmp_path, [query("c"), query("d", "validation")], first)
    both = exposure.trained_on(f"file://{tmp_path}")
    held_out = [query(text, "heldout") for text in ("  a ", "b", "c", "d")]  # white space makes no other task
    assert exposure.known(held_out, first) == {"id of   a "}
    assert exposure.known(held_out, both) == {"id of   a ", "id of c"}


def test_the_champion_and_the_base_line_up_before_the_others(registry, model):
    config = Config.model_validate({"evaluation": {"policies": [{"name": "reference", "kind": "playback"}]}})
    assert [p.name for p in line_up(config, registry).evaluation.policies] == ["base", "reference"]
    version = registry.publish(model("one"), {}).version_id
    registry.promote(version, after=0, reason="by hand")
    lined = line_up(config, registry).evaluation.policies
    assert [(p.name, p.model) for p in lined] == [
        ("champion", registry.model_place(version)),
        ("base", "embedded"),
        ("reference", ""),
    ]
    scratch = config.model_copy(update={"policy": config.policy.model_copy(update={"base": "scratch"})})
    assert [p.name for p in line_up(scratch, registry).evaluation.policies] == ["champion", "reference"]
