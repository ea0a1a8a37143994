import json
from dataclasses import replace

import pytest

from steptool.artifacts.metrics import count_metrics
from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.records import Cost, Query
from steptool.records.episodes import read_queries
from steptool.report.run_inputs import ReportInputs, _write_notes
from steptool.report.run_page import build_report, format_table, state_result, summarise_run

CONFIG = {"seed": 0, "evaluation": {"split": "heldout", "bootstrap": 2000}}


def _inputs(rows, **other):
    return ReportInputs("a run", config=other.pop("config", CONFIG), evaluations=rows, **other)


def _first(inputs):
    return state_result(inputs)[0]


def test_the_figures_by_hand(evaluation):
    rows = [
        evaluation("q0", "base", 0.0),
        evaluation("q1", "base", 0.0, tier="long"),
        evaluation("q0", "warm_start", 1.0, calls=4, invalid_calls=1),
        evaluation("q1", "warm_start", 0.0, calls=4, invalid_calls=3, tier="long"),
        evaluation("q0", "steptool", 1.0, recall=0.5, steps=4),
        evaluation("q1", "steptool", 1.0, tier="long", steps=7),
        evaluation("q0", "steptool", 1.0, decoding="sampled"),
        evaluation("q0", "steptool", 0.0, decoding="sampled", repeat=1),
        evaluation("q1", "steptool", 1.0, decoding="sampled", tier="long"),
        evaluation("q1", "steptool", 1.0, decoding="sampled", repeat=1, tier="long"),
    ]
    costs = [Cost("rollout", 0, 2.0, 100, 300.0), Cost("rollout", 1, 3.0, 150, 400.0), Cost("ppo", 0, 5.0, 0, 350.0)]
    figures = summarise_run(_inputs(rows, costs=costs))

    assert figures["pass_rate"] == {"base": 0.0, "warm_start": 0.5, "steptool": 1.0}
    assert figures["sampled_pass_rate"] == {"steptool": 0.75}
    assert figures["difference"]["mean"] == pytest.approx(0.5) and figures["difference"]["n"] == 2
    assert (figures["difference"]["low"], figures["difference"]["high"]) == (0.0, 1.0)
    assert list(figures["tiers"]) == ["single", "long"]
    assert figures["tiers"]["long"]["warm_start"]["invalid_call_rate"] == 0.75
    assert figures["tiers"]["single"]["steptool"]["recall"] == 0.5
    assert figures["tiers"]["single"]["steptool"]["sampled_pass_rate"] == 0.5
    assert figures["differences"]["long"]["mean"] == 1.0
    assert figures["tasks"] == 2
    assert figures["seconds"] == {"rollout": 5.0, "ppo": 5.0, "total": 10.0}
    assert figures["tokens"] == {"rollout": 250, "ppo": 0, "total": 250}
    assert figures["peak_memory_mb"] == 400.0
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_the_comparisons_of_a_report_are_one_family(results):
    """All greedy tasks and both tiers: three comparisons; 12 of 12 in one tier, p = 2/4096, none in the other."""
    rows = results(warm_start="0" * 24, steptool="1" * 12 + "0" * 12)
    rows = [replace(r, tier="single" if int(r.query_id[1:]) < 12 else "long") for r in rows]
    figures = {c["group"]: c for c in summarise_run(_inputs(rows))["comparisons"]}
    assert list(figures) == ["all", "single", "long"]
    assert figures["single"]["corrected"] == pytest.approx(3 * figures["single"]["p"]) and figures["single"]["shown"]
    assert figures["single"]["mean"] == 1.0 and figures["all"]["shown"]
    assert figures["long"]["corrected"] == 1.0 and not figures["long"]["shown"]


def test_the_difference_is_over_the_common_tasks(results):
    rows = results(warm_start="0101", steptool="11")
    assert summarise_run(_inputs(rows))["difference"]["n"] == 2
    assert summarise_run(_inputs(rows))["difference"]["mean"] == 0.5


def test_nothing_at_all():
    figures = summarise_run(ReportInputs("empty"))
    assert figures["difference"] is None and figures["pass_rate"] == {} and figures["seconds"] == {"total": 0}
    assert "0 s of work" in format_table(figures)


def test_headline_of_a_gain(results):
    rows = results(base="0" * 20, warm_start="1" * 8 + "0" * 12, steptool="1" * 14 + "0" * 6)
    text = _first(_inputs(rows))
    assert text.startswith(
        "StepTool solves 70% of 20 held-out tasks, 30 points more than the warm start (95% interval "
    )
    assert text.endswith(").")


def test_headline_where_the_interval_includes_zero(results):
    text = _first(_inputs(results(warm_start="1100", steptool="0111")))
    assert "75% of 4 held-out tasks, 25 points more than the warm start, but the 95% interval" in text
    assert text.endswith("includes 0: no improvement is shown.")


def test_headline_of_no_change(results):
    text = _first(_inputs(results(warm_start="1100", steptool="1100")))
    assert text.startswith("StepTool solves 50% of 4 held-out tasks, as many as the warm start (95% interval 0 to 0)")
    assert text.endswith(": no improvement is shown.")


def test_headline_of_a_loss(results):
    text = _first(_inputs(results(warm_start="1" * 20, steptool="0" * 20)))
    assert text == (
        "StepTool solves none of 20 held-out tasks, 100 points fewer than the warm start (95% interval −100 to −100): "
        "training made it worse."
    )


def test_headline_where_nobody_solves_anything(results):
    text = _first(_inputs(results(base="0000", warm_start="0000", steptool="0000")))
    assert text == "No model solved any of the 4 held-out tasks: there is no improvement to report."


def test_headline_names_the_split_and_what_is_missing(results):
    config = {"evaluation": {"split": "validation"}}
    assert "1 validation task;" in _first(_inputs(results(steptool="1"), config=config))
    assert "no warm start to compare" in _first(_inputs(results(steptool="1")))
    assert _first(_inputs(results(warm_start="1"))).startswith("There is no result yet")


def test_the_table_is_aligned(results):
    figures = summarise_run(
        _inputs(results(base="0000", warm_start="1000", steptool="1111"), costs=[Cost("ppo", 0, 61.4, 1500)])
    )
    lines = format_table(figures).splitlines()
    assert lines[0].split()[:3] == ["pass", "rate,", "greedy"]
    assert "0.0%" in lines[1] and "25.0%" in lines[1] and "100.0%" in lines[1] and "+75.0 points" in lines[1]
    assert lines[2].split() == ["single", "0.0%", "25.0%", "100.0%", *lines[1].split()[4:]]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[-1] == "61 s of work, 1,500 tokens, 0 MB at the peak"
    assert not any(line.startswith("all, sampled") for line in lines)  # no task was sampled


def test_the_table_has_sampled_rates_by_tier(evaluation):
    """Sampled twice: the warm start solves 1 of 2 tries at the long task, the result both; the short one is solved."""
    rows = [
        evaluation(query, model, float(solved), decoding=decoding, repeat=repeat, tier=tier)
        for model, tries in (("warm_start", (0, 1)), ("steptool", (1, 1)))
        for decoding, repeats in (("greedy", 1), ("sampled", 2))
        for repeat in range(repeats)
        for query, tier, solved in (("a", "long", tries[repeat]), ("b", "single", 1))
    ]
    cells = [line.split() for line in format_table(summarise_run(_inputs(rows))).splitlines()]
    assert cells[4:7] == [
        ["all,", "sampled", "75.0%", "100.0%"],
        ["long,", "sampled", "50.0%", "100.0%"],
        ["single,", "sampled", "100.0%", "100.0%"],
    ]


def test_a_run_whose_tasks_nothing_can_check_says_so(evaluation):
    rows = [
        evaluation(f"q{i}", model, None, verdict_source="none", recall=None)
        for model in ("base", "warm_start", "steptool")
        for i in range(4)
    ]
    figures = summarise_run(_inputs(rows))
    assert (
        figures["pass_rate"] == {}
        and figures["difference"] is None
        and figures["tiers"]["single"]["base"]["recall"] is None
    )
    assert "not measurable: the tasks have neither a check nor a reference answer" in _first(_inputs(rows))
    assert "4 of 4 tasks have neither a check nor a reference answer" in figures["left_out"][0]


def test_the_second_sentence_compares_with_the_base(results):
    """20 of 40 tasks more than the warm start: 50 points; 30 of 40 more than the base: 75 points."""
    rows = results(base="0" * 40, warm_start="1" * 10 + "0" * 30, steptool="1" * 30 + "0" * 10)
    first, second = state_result(_inputs(rows))
    assert first.startswith(
        "StepTool solves 75% of 40 held-out tasks, 50 points more than the warm start (95% interval"
    )
    assert second.startswith("That is 75 points more than the base model (95% interval")
    assert len(state_result(_inputs([r for r in rows if r.model != "base"]))) == 1


def test_a_result_below_its_base_says_so_first(results):
    """10 of 40 tasks lost against the base: -25 points."""
    rows = results(base="1" * 40, warm_start="0" * 40, steptool="1" * 30 + "0" * 10)
    inputs = _inputs(rows)
    assert summarise_run(inputs)["base_difference"]["mean"] == -0.25
    first, second = state_result(inputs)
    assert first.startswith("StepTool solves 75% of 40 held-out tasks, 25 points fewer than the base model (95% inter")
    assert first.endswith("training made it worse.")
    assert second.startswith("That is 75 points more than the warm start (95% interval")


def test_a_group_that_a_run_did_not_evaluate_is_named_beside_its_table(results):
    queries = [Query("q0", "heldout", "e", "do it", (), tier="single"), Query("q1", "train", "e", "", (), tier="long")]
    inputs = _inputs(results(warm_start="0", steptool="1"), queries=queries)
    gap = "No task of the group 'long' was evaluated: the split heldout has none (1 in train)."
    assert summarise_run(inputs)["left_out"] == [gap]
    assert gap in build_report(inputs).replace("&#39;", "'")


def test_a_group_whose_tasks_ingest_dropped_is_named_in_the_notes(tmp_path):
    """Of two held-out tasks of two tiers the limit keeps one."""
    tool = {"type": "function", "function": {"name": "t", "description": "", "parameters": {"type": "object"}}}
    tasks = [{"instruction": f"Do {tier}", "tools": [tool], "tier": tier, "split": "heldout"} for tier in "ab"]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    data = {"source": "jsonl", "paths": [str(tmp_path / "tasks.jsonl")], "heldout_queries": 1}
    read = ingest(Config.model_validate({"data": data}), tmp_path / "out", for_training=False)
    (kept_query,) = read_queries(read.queries_path)
    lost = "ab".replace(kept_query.tier, "")
    assert list(_write_notes(tmp_path, count_metrics("ingest", read.counts), [])) == [
        f"1 queries were dropped: more than data.heldout_queries, which leaves no task of the group '{lost}'."
    ]
