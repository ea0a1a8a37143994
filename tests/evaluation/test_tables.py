import csv
import io
import json
import re

import pytest

from steptool.evaluation.results import compute_results, make_plain_figures, to_csv, to_latex, to_markdown
from steptool.records import Evaluation, Preference, Query, Verdict
from steptool.records.columns import from_row
from steptool.records.tables import to_table
from steptool.report.evaluation_page import build_evaluation_page


def row(query, model, passed, tier="single", **other):
    fields = {
        "query_id": query, "split": "heldout", "tier": tier, "model": model, "decoding": "greedy", "repeat": 0,
        "trajectory_id": f"{model}-{query}", "passed": passed, "recall": 0.5, "steps": 4, "calls": 4,
        "invalid_calls": 1, "redundant_calls": 2, "tokens": 30, "prompt_tokens": None, "money": None, "seconds": 2.0,
        "stop_reason": "finished", "verdict_source": "environment", **other,
    }  # fmt: skip
    return from_row(to_table([fields], Evaluation).to_pylist()[0], Evaluation)


@pytest.fixture
def results():
    """Two models on 12 tasks of two tiers; `a_b|c` solves the 6 single ones, `<x>` none; verdicts on the first."""
    rows = [row(f"s{i}", "a_b|c", 1.0, money=0.5) for i in range(6)]
    rows += [row(f"l{i}", "a_b|c", 0.0, tier="long", money=0.5) for i in range(6)]
    rows += [row(r.query_id, "<x>", 0.0, tier=r.tier, stop_reason="gave_up") for r in rows]
    tries = [
        row("s0", "a_b|c", 1.0, decoding="sampled"),
        row("s0", "a_b|c", 0.0, decoding="sampled", repeat=1),
    ]
    verdicts = [Verdict(r.query_id, "a_b|c", n, "solved" if n else "unsure") for r in rows[:12] for n in (0, 1)]
    wins = [Preference("s0", "<x>", "a_b|c", 0, False, "other")]
    return compute_results([*rows, *tries], verdicts, wins, draws=500)


def test_the_lines_by_hand(results):
    greedy = [line for line in results.lines if line["decoding"] == "greedy"]
    lines = {(line["model"], line["group"]): line for line in greedy}
    assert list(lines) == [(m, g) for g in ("all", "single", "long") for m in ("a_b|c", "<x>")]
    whole = lines["a_b|c", "all"]
    assert (whole["tasks"], whole["pass_rate"], whole["recall"]) == (12, 0.5, 0.5)
    assert (whole["low"], whole["high"]) == (pytest.approx(0.2538, abs=1e-4), pytest.approx(0.7462, abs=1e-4))
    assert (whole["invalid_call_rate"], whole["redundant_call_rate"], whole["steps"]) == (0.25, 0.5, 4.0)
    assert (whole["tokens_per_solved"], whole["seconds_per_solved"], whole["money_per_solved"]) == (60.0, 4.0, 1.0)
    assert (whole["judged_pass_rate"], whole["judged_deviation"], whole["judged_missing"]) == (0.75, 0.25, 0)
    sampled = {line["group"]: line for line in results.lines if line["decoding"] == "sampled"}
    assert list(sampled) == ["all", "single"] and sampled["all"]["tasks"] == 1
    assert (sampled["all"]["pass@1"], sampled["all"]["pass@2"], sampled["all"]["pass^2"]) == (0.5, 1.0, 0.0)
    nothing = lines["<x>", "single"]
    assert nothing["tokens_per_solved"] is None and nothing["judged_pass_rate"] is None and "pass@1" not in nothing


def test_the_figures_are_plain_json(results):
    figures = json.loads(json.dumps(make_plain_figures(results), allow_nan=False))
    assert [c["group"] for c in figures["comparisons"]] == ["all", "single", "long"]
    single = figures["comparisons"][1]
    assert (single["a"], single["b"], single["difference"]["mean"], single["family"]) == ("<x>", "a_b|c", -1.0, 3)
    assert single["p"] == pytest.approx(2 / 64, abs=0.02) and single["conclusion"].startswith("<x> solves 100 points")
    assert figures["win_rates"] == [
        {"model": "<x>", "other": "a_b|c", "rate": 0.0, "wins": 0, "ties": 0, "losses": 1, "missing": 0}
    ]


def test_csv_holds_the_numbers(results):
    lines = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(lines) == 8
    assert (lines[0]["model"], float(lines[0]["pass_rate"]), float(lines[0]["money_per_solved"])) == ("a_b|c", 0.5, 1.0)
    assert lines[-1]["tokens_per_solved"] == "" and lines[-1]["pass@1"] == ""


def test_no_cell_of_the_csv_table_is_a_formula():
    rows = [row(f"q{number}", "=1+1", 1.0, tier=tier) for number, tier in enumerate(("@SUM(1)", "-2+3", "plain"))]
    cells = [cell for line in csv.reader(io.StringIO(to_csv(compute_results(rows, draws=10)))) for cell in line]
    assert {"'=1+1", "'@SUM(1)", "'-2+3", "plain"} <= set(cells)
    assert not [cell for cell in cells if re.match(r"[=+@\t\r]|-\D|-\d\D", cell)]


def test_markdown_escapes_names_and_leaves_out_what_was_not_measured(results):
    text = to_markdown(results)
    table = [line for line in text.splitlines() if line.startswith("| all | a\\_b\\|c")]
    assert "| greedy | 12 | 50.0% (25.4% to 74.6%) | environment | 75.0% ± 25.0% |" in table[0]
    widths = {line.replace("\\|", "").count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(widths) == 1
    assert "- \\<x\\> solves 50 points fewer than a\\_b\\|c on 12 tasks" in text
    alone = to_markdown(compute_results([row("q", "one", 0.0)], draws=10))
    assert "Judged" not in alone and "Money" not in alone and "Comparisons on" not in alone


def test_latex_escapes_what_means_something_to_it(results):
    text = to_latex(results)
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 3
    assert r"a\_b|c" in text and r"50.0\% (25.4\% to 74.6\%)" in text and r"75.0\% $\pm$ 25.0\%" in text
    assert "$<$x$>$" in text and r"pass\textasciicircum{}2" in text and "$-$100" in text
    assert not {"–", "−", "±"} & set(text)


def test_the_page_shows_the_same_and_trusts_no_name(results):
    html = build_evaluation_page(results, "seed: 0 </pre><script>")
    assert "&lt;x&gt; solves 50 points fewer than a_b|c on 12 tasks" in html
    assert html.count("<script") == 1 and "<x>" not in html and "http" not in html.replace("http-equiv", "")
    assert html.count("<tr>") == 3 + 8 + 3 + 1


def unchecked_rows(query, model, **other):
    """A row of a task that has neither a check nor a reference answer."""
    return row(query, model, None, verdict_source="none", recall=None, **other)


def test_what_nothing_can_check_is_not_measurable():
    """A policy that answers "yes" to tasks without check and reference has no pass rate and no recall."""
    results = compute_results([unchecked_rows(f"q{i}", m) for m in ("yes", "no") for i in range(5)], draws=10)
    line = results.lines[0]
    assert (line["tasks"], line["measured_tasks"]) == (5, 0)
    assert [line[name] for name in ("pass_rate", "low", "high", "recall", "tokens_per_solved")] == [None] * 5
    assert results.comparisons == []
    text, page = to_markdown(results), build_evaluation_page(results, "").partition("<script")[0]
    for text_or_page in (text, page):
        assert text_or_page.count("not measurable") == 3  # two models, and the sentence on what is left out
        assert "Tool recall" not in text_or_page  # a column in which nothing was measured
    assert "5 of 5 tasks have neither a check nor a reference answer" in text
    assert "<svg" not in page  # there is no rate to draw


def test_pass_rates_are_of_the_tasks_with_a_verdict():
    rows = [row("a", "m", 1.0), row("b", "m", 0.0, verdict_source="reference"), unchecked_rows("c", "m")]
    (line,) = compute_results(rows, draws=10).lines
    assert (line["pass_rate"], line["tasks"], line["measured_tasks"]) == (0.5, 3, 2)
    assert line["verdict_sources"] == "environment 1, reference 1, none 1"
    text = to_markdown(compute_results(rows, draws=10))
    assert "| 2 of 3 |" in text and "| environment 1, reference answer 1, nothing 1 |" in text


def test_comparisons_leave_out_tasks_without_a_verdict_and_say_so():
    """On a and b the second model gains one of two; c has no verdict on its side."""
    rows = [row("a", "x", 0.0), row("b", "x", 1.0), row("c", "x", 1.0)]
    rows += [row("a", "y", 1.0), row("b", "y", 1.0), unchecked_rows("c", "y")]
    results = compute_results(rows, draws=50)
    (comparison,) = results.comparisons
    assert (comparison.difference.mean, comparison.difference.n, comparison.left_out) == (0.5, 2, 1)
    assert (comparison.changes.fixed, comparison.changes.both) == (1, 1)
    assert "Comparisons leave out up to 1 tasks without a verdict on both sides." in results.gaps


def test_a_group_that_was_not_evaluated_is_named():
    queries = [Query(f"q{n}", split, "e", "do it", (), tier=tier) for n, (split, tier) in enumerate(
        [("heldout", "single"), ("train", "single"), ("train", "long"), ("train", "long"), ("validation", "long")]
    )]  # fmt: skip
    results = compute_results([row("q0", "m", 1.0)], queries=queries, draws=10)
    gap = "No task of the group 'long' was evaluated: the split heldout has none (2 in train, 1 in validation)."
    assert results.gaps == [gap] and gap in build_evaluation_page(results, "").replace("&#39;", "'")


def test_episodes_whose_check_failed_are_counted():
    rows = [row("a", "m", 1.0), row("b", "m", None, verdict_source="failed")]
    results = compute_results(rows, draws=10)
    assert results.lines[0]["pass_rate"] == 1.0
    assert results.gaps == ["The check of the environment failed on 1 of 2 episodes, which have no verdict."]
    assert "| 1 of 2 |" in to_markdown(results) and "check failed 1" in to_markdown(results)
