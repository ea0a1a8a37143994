import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal

from evaluation_rows import make_evaluation
from steptool.evaluation.compare import compare, paired_bootstrap
from steptool.evaluation.scores import RESULT, compare_scores

ROWS = [
    ("t1", "old", 0, 2.0), ("t1", "old", 1, 4.0), ("t1", "new", 0, 5.0),
    ("t2", "old", 0, 1.0), ("t2", "new", 0, 4.0), ("t2", "new", 1, 2.0),
    ("t3", "old", 0, 7.0), ("t3", "new", 0, None),
]  # fmt: skip


def table(rows: list[tuple[str | None, str | None, int, float | None]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "model", "repeat", "score"])


def test_repeats_are_averaged_and_tasks_without_a_score_on_one_side_are_left_out() -> None:
    (row,) = compare_scores(table(ROWS)).to_dict("records")
    assert tuple(row) == RESULT
    # t1: 5 - 3; t2: 3 - 1. Both differ by 2, so that every resample of the tasks does.
    assert (row["a"], row["b"], row["mean_a"], row["mean_b"]) == ("new", "old", 4.0, 2.0)
    assert (row["difference"], row["low"], row["high"]) == (2.0, 2.0, 2.0)
    assert (row["tasks"], row["left_out"]) == (2, 1)
    # Of the four ways to toss two coins, two keep the sum at +-4.
    assert row["p"] == pytest.approx(0.5, abs=0.03) and not row["shown"]


@pytest.mark.parametrize("write", [pa.Table.from_pandas, lambda t: t.to_dict("records"), lambda t: t.to_dict("list")])
def test_a_table_may_come_in_any_form(write: Callable[[pd.DataFrame], Any]) -> None:
    scores = table(ROWS)
    assert_frame_equal(compare_scores(write(scores)), compare_scores(scores))


def test_without_a_draw_nothing_can_be_said() -> None:
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        compare_scores(table(ROWS), draws=0)


def test_the_p_values_of_several_pairs_are_corrected_together() -> None:
    rows = [
        (f"t{i}", model, 0, float(i < solved)) for model, solved in (("a", 2), ("b", 12), ("c", 14)) for i in range(20)
    ]
    result = compare_scores(table(rows)).set_index(["a", "b"])
    assert list(result.index) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert result["difference"].tolist() == pytest.approx([0.5, 0.6, 0.1])
    p = result["p"]
    # Holm: the smallest of three times 3, the next one times 2 (or no less than the first), the last as it is
    first, second = sorted([p["b", "a"], p["c", "a"]])
    assert sorted(result["corrected"])[:2] == pytest.approx([3 * first, max(3 * first, 2 * second)])
    assert result["corrected"]["c", "b"] == p["c", "b"]
    assert result["shown"].tolist() == [True, True, False]
    alone = compare_scores(table(rows), pairs=[("a", "c")])
    assert alone["difference"].tolist() == pytest.approx([-0.6]) and alone["corrected"].tolist() == alone["p"].tolist()


def test_verdicts_give_what_the_comparison_of_an_evaluation_gives() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"q{i:02}", model, repeat, float(rng.random() < rate))
            for model, rate in (("a", 0.3), ("b", 0.6)) for i in range(30) for repeat in (0, 1)]  # fmt: skip
    (row,) = compare_scores(table(rows), draws=500, seed=3).to_dict("records")
    sides = {m: [make_evaluation(q, s, model=m, repeat=r) for q, model, r, s in rows if model == m] for m in "ab"}
    (expected,) = compare(sides, draws=500, seed=3)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (expected.difference.mean, expected.difference.low, expected.difference.high)
    )
    assert row["p"] == expected.p and row["shown"] == expected.is_shown
    assert paired_bootstrap(sides["b"], sides["a"], 500, 3).low == row["low"]


@pytest.mark.parametrize(
    ("scores", "pairs", "message"),
    [
        (table(ROWS).drop(columns="task"), None, "missing: task"),
        (table([("t", "a", 0, 1.0), ("t", "b", 0, float("inf"))]), None, "infinite"),
        (table([("t", "a", 0, 1.0), (None, "b", 0, 1.0)]), None, "expected a task in every row, got 1 rows"),
        (table([("t", "a", 0, 1.0), ("t", None, 0, 1.0)]), None, "expected a model in every row, got 1 rows"),
        (table(ROWS), [("new", "new")], "two models in a pair, got new twice"),
        (table([("t", "a", 0, 1.0)]), None, r"two models, got \['a'\]"),
        (table([("t", "a", 0, 1.0), ("u", "b", 0, 1.0)]), None, "b and a have no task in common"),
        (table(ROWS), [("new", "gpt")], r"no scores of gpt: the table has \['old', 'new'\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: pd.DataFrame, pairs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_scores(scores, pairs)


def test_the_example_of_the_documentation_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})
    (promised,) = re.findall(r"^This prints `(.*?)`", text, re.MULTILINE)
    assert capsys.readouterr().out == f"{promised}\n"
