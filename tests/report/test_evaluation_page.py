from steptool.evaluation.results import Results
from steptool.records import Cost
from steptool.report.evaluation_page import build_evaluation_page, tabulate_judge_costs
from steptool.report.run_inputs import ReportInputs
from steptool.report.run_page import build_report


def cost(round, **counts):
    return Cost("annotate", round, counts={"requests": 0, **counts})


def test_counts_of_shards_and_rounds_are_summed_by_part():
    training = [cost(0, requests=3, money=0.5, **{"votes missing": 1}), cost(1, requests=1200, money=0.25)]
    held_out = [cost(-1, requests=7, cached=2)]
    table = tabulate_judge_costs({"training": training, "held-out": held_out, "nothing": [Cost("annotate")]})
    assert table.parts == ("training", "held-out", "in all")
    lines = dict(table.lines)
    assert lines["requests answered"] == ("1,203", "7", "1,210")
    assert lines["money, at the configured prices"] == ("0.7500", "0", "0.7500")
    assert lines["votes missing in the end"] == ("1", "0", "1")
    assert lines["replies from the cache"] == ("0", "2", "2")
    assert tabulate_judge_costs({"alone": training}).parts == ("alone",)


def test_an_annotator_without_requests_has_no_table():
    assert tabulate_judge_costs({"training": [Cost("annotate", 0)]}) is None
    assert "Requests to the judge" not in build_report(ReportInputs("x", costs=[Cost("annotate", 0, seconds=1.0)]))


def test_the_report_of_a_run_and_that_of_an_evaluation_show_what_the_judge_was_asked():
    costs = [
        cost(0, requests=41, prompt_tokens=61_500),
        cost(-1, requests=2),
        Cost("ppo", 0, counts={"requests": 9}),
    ]
    for html in (
        build_report(ReportInputs("x", costs=costs)),
        build_evaluation_page(Results([]), "", judge_costs=tabulate_judge_costs({"judge": costs[:1]})),
    ):
        assert "Requests to the judge" in html and "61,500" in html and ">41<" in html
    assert ">43<" in build_report(ReportInputs("x", costs=costs))
