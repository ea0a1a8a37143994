"""The training of `make gpu` in its smallest size: the library alone, from data to pass rates."""

from pathlib import Path

import pytest

from scripts.gpu_training import train


def test_two_rounds_and_the_evaluation_of_both_models(tmp_path: Path) -> None:
    rows = train(tmp_path / "none", 600.0, True, tmp_path)
    ways = [row["way"] for row in rows]
    assert ways[:3] == ["data and base model", "warm start of 3 steps", "rounds of 8 episodes: 2"]
    assert rows[3]["greedy"].startswith("pass rate ")
    assert [row["way"] for row in rows if "difference" in row] == [
        "gain of StepTool, greedy",
        "gain of StepTool, sampled",
    ]


@pytest.mark.slow
def test_rounds_end_when_no_further_one_fits(tmp_path: Path) -> None:
    rows = train(tmp_path / "none", 0.1, True, tmp_path)
    assert rows[2]["way"] == "rounds of 8 episodes: 1"
