import csv
import io
import json

import pytest

from steptool.contracts.tables import to_table
from steptool.evaluation.table import figures, frame, results, to_latex, to_markdown
from steptool.records import Evaluation
from steptool.report.evaluation_page import evaluation_page


def row(query, model, passed, tier="single", **other):
    made = {
        "query_id": query, "split": "heldout", "tier": tier, "model": model, "decoding": "greedy", "repeat": 0,
        "trajectory_id": f"{model}-{query}", "passed": passed, "recall": 0.5, "steps": 4, "calls": 4,
        "invalid_calls": 1, "redundant_calls": 2, "tokens": 30, "prompt_tokens": None, "money": None, "seconds": 2.0,
        "stop_reason": "finished", **other,
    }  # fmt: skip
    return to_table([made], Evaluation).to_pylist()[0]


@pytest.fixture
def found():
    """Two models on 12 tasks of two tiers; `a_b|c` solves the 6 single ones, `<x>` none; verdicts on the first."""
    rows = [row(f"s{i}", "a_b|c", 1.0, money=0.5) for i in range(6)]
    rows += [row(f"l{i}", "a_b|c", 0.0, tier="long", money=0.5) for i in range(6)]
    rows += [row(r["query_id"], "<x>", 0.0, tier=r["tier"], stop_reason="gave_up") for r in rows]
    tries = [
        row("s0", "a_b|c", 1.0, decoding="sampled"),
        row("s0", "a_b|c", 0.0, decoding="sampled", repeat=1),
    ]
    verdicts = [
        {"query_id": r["query_id"], "model": "a_b|c", "repeat": n, "status": "solved" if n else "unsure"}
        for r in rows[:12]
        for n in (0, 1)
    ]
    wins = [{"query_id": "s0", "model": "<x>", "other": "a_b|c", "preference": "other"}]
    return results([*rows, *tries], verdicts, wins, draws=500)


def test_the_lines_by_hand(found):
    lines = {(line["model"], line["group"]): line for line in found.lines}
    assert list(lines) == [(m, g) for g in ("all", "single", "long") for m in ("a_b|c", "<x>")]
    whole = lines["a_b|c", "all"]
    assert (whole["tasks"], whole["pass_rate"], whole["recall"]) == (12, 0.5, 0.5)
    assert (whole["low"], whole["high"]) == (pytest.approx(0.2538, abs=1e-4), pytest.approx(0.7462, abs=1e-4))
    assert (whole["invalid_call_rate"], whole["redundant_call_rate"], whole["steps"]) == (0.25, 0.5, 4.0)
    assert (whole["tokens_per_solved"], whole["seconds_per_solved"], whole["money_per_solved"]) == (60.0, 4.0, 1.0)
    assert (whole["judged_pass_rate"], whole["judged_deviation"], whole["judged_missing"]) == (0.75, 0.25, 0)
    assert (whole["pass@1"], whole["pass@2"], whole["pass^2"]) == (0.5, 1.0, 0.0)
    nothing = lines["<x>", "single"]
    assert nothing["tokens_per_solved"] is None and nothing["judged_pass_rate"] is None and "pass@1" not in nothing


def test_the_figures_are_plain_json(found):
    told = json.loads(json.dumps(figures(found), allow_nan=False))
    assert [c["group"] for c in told["comparisons"]] == ["all", "single", "long"]
    single = told["comparisons"][1]
    assert (single["a"], single["b"], single["difference"]["mean"], single["family"]) == ("<x>", "a_b|c", -1.0, 3)
    assert single["p"] == pytest.approx(2 / 64, abs=0.02) and single["conclusion"].startswith("<x> solves 100 points")
    assert told["win_rates"] == [
        {"model": "<x>", "other": "a_b|c", "rate": 0.0, "wins": 0, "ties": 0, "losses": 1, "missing": 0}
    ]


def test_csv_holds_the_numbers(found):
    lines = list(csv.DictReader(io.StringIO(frame(found).to_csv(index=False))))
    assert len(lines) == 6
    assert (lines[0]["model"], float(lines[0]["pass_rate"]), float(lines[0]["money_per_solved"])) == ("a_b|c", 0.5, 1.0)
    assert lines[-1]["tokens_per_solved"] == "" and lines[-1]["pass@1"] == ""


def test_markdown_escapes_names_and_leaves_out_what_was_not_measured(found):
    text = to_markdown(found)
    table = [line for line in text.splitlines() if line.startswith("| all | a\\_b\\|c")]
    assert "| 12 | 50.0% (25.4% to 74.6%) | 75.0% ± 25.0% |" in table[0]
    widths = {line.replace("\\|", "").count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(widths) == 1
    assert "- \\<x\\> solves 50 points fewer than a\\_b\\|c on 12 tasks" in text
    alone = to_markdown(results([row("q", "one", 0.0)], draws=10))
    assert "Judged" not in alone and "Money" not in alone and "Comparisons on" not in alone


def test_latex_escapes_what_means_something_to_it(found):
    text = to_latex(found)
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 3
    assert r"a\_b|c" in text and r"50.0\% (25.4\% to 74.6\%)" in text and r"75.0\% $\pm$ 25.0\%" in text
    assert "$<$x$>$" in text and r"pass\textasciicircum{}2" in text and "$-$100" in text
    assert not {"–", "−", "±"} & set(text)


def test_the_page_shows_the_same_and_trusts_no_name(found):
    html = evaluation_page(found, "seed: 0 </pre><script>")
    assert "&lt;x&gt; solves 50 points fewer than a_b|c on 12 tasks" in html
    assert "<script" not in html and "<x>" not in html and "http" not in html.replace("http-equiv", "")
    assert html.count("<tr>") == 3 + 6 + 3 + 1
