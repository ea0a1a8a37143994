import json

import pytest

from steptool.artifacts.metrics import (
    Stopwatch,
    Ticker,
    average_known,
    count_metrics,
    format_line,
    format_rate,
    measure_peak_memory_mb,
    say,
    say_results,
    select_counts,
    total_counts,
    update_metrics,
)
from steptool.records import Cost, Metric


def test_a_line_names_stage_round_rate_and_clock() -> None:
    text = format_line("ppo", format_rate([1.0, 0.0, None, 0.0, 1.0]), seconds=65.0, round_index=2, rounds=16)
    assert text.split("  ")[0] == "ppo"
    assert "round  3 of 16" in text
    assert "pass rate 0.500" in text
    assert text.endswith("65 s this round, 14 min 05 s left in rounds")  # 13 rounds of 65 s


def test_nothing_is_left_after_the_last_round() -> None:
    text = format_line("ppo", "done", seconds=5.0, round_index=3, rounds=4)
    assert text.endswith("5 s this round, 0 s left in rounds")


def test_a_stage_outside_the_rounds_has_no_round_and_no_estimate() -> None:
    assert format_line("ingest", "3 queries") == "ingest      3 queries"
    assert format_line("warm_start", "finished", seconds=130.2) == "warm_start  finished  2 min 10 s"


def test_an_unknown_verdict_is_not_a_zero() -> None:
    assert format_rate([None, None]).startswith("pass rate unknown: the environment gives no verdict, and no task")


def test_lines_appear_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    say("rollout", "48 episodes")
    assert capfd.readouterr().out == "rollout     48 episodes\n"


def test_a_stopwatch_measures_time_and_memory() -> None:
    watch = Stopwatch("ppo", 3)
    cost = watch.measure_cost(tokens=7)
    assert (cost.stage, cost.round, cost.tokens) == ("ppo", 3, 7)
    assert 0 <= cost.seconds < 5
    assert 10 < cost.peak_memory_mb <= measure_peak_memory_mb() < 100_000


def test_a_ticker_tells_what_is_left_and_keeps_quiet_in_between(capfd: pytest.CaptureFixture[str]) -> None:
    eager, patient = (Ticker("evaluate", 4, "episodes", every_seconds=s) for s in (0.0, 3600.0))
    for done in range(5):
        eager(done, 4)
        patient(done, 4)
    texts = capfd.readouterr().out.splitlines()
    assert texts[0].startswith("evaluate    1 of 4 episodes, 0 s left")
    assert len(texts) == 4


def test_control_characters_of_data_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("ingest", "\x1b[2J\x9b31m\u202e é 漢\u00a0\tx")
    assert capsys.readouterr().out == "ingest      \\x1b[2J\\x9b31m\\u202e é 漢\u00a0\tx\n"


def test_a_mean_leaves_out_what_is_missing_and_is_exact() -> None:
    assert average_known([None, 1.0, 0.0, None]) == 0.5
    assert average_known([0.1] * 10) == 0.1  # a sum of floats divided by 10 is 0.09999999999999999
    assert average_known([None]) is None


def test_figures_of_optimizer_steps_are_numbered_from_0() -> None:
    assert update_metrics([{"loss": 2.5, "kl": 0}, {"loss": 2.0}], "ppo", 3) == [
        Metric("ppo", 3, 0, "loss", 2.5),
        Metric("ppo", 3, 0, "kl", 0.0),
        Metric("ppo", 3, 1, "loss", 2.0),
    ]


def test_counts_come_back_flat_and_apart_from_metrics_of_training() -> None:
    counts = count_metrics("warm_start", {"kept": {"train": 3, "heldout": 2}, "dropped": 1})
    metrics = [*counts, Metric("warm_start", -1, 0, "loss", 2.5)]
    assert select_counts(metrics, "warm_start") == {"kept/train": 3, "kept/heldout": 2, "dropped": 1}
    assert select_counts(metrics, "ingest") == {}


def test_counts_of_shards_are_summed_by_name() -> None:
    shards = [Cost("annotate", 0, counts={"requests": 2, "money": 0.5}), Cost("annotate", 0, counts={"requests": 3})]
    assert total_counts([*shards, Cost("ppo", 0)]) == {"requests": 5, "money": 0.5}


def test_a_structured_line_holds_any_text(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("STEPTOOL_LOG", "json")
    say("rollout", "caf\u00e9 \ud800 \u009b")  # half of a pair, as a tool may return it, and a control character
    line = capfdbinary.readouterr().out
    assert line.isascii() and json.loads(line)["message"] == "caf\u00e9 \ud800 \u009b"


def test_results_are_a_table_or_one_line_of_a_structured_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_results("report", "all  50%\nlong  0%\n", {"report": "runs/demo/report.html"})
    assert capsys.readouterr().out == "\nall  50%\nlong  0%\n\nreport: runs/demo/report.html\n"
    monkeypatch.setenv("STEPTOOL_LOG", "json")
    say_results("report", "all  50%\nlong  0%\n", {"report": "runs/demo/report.html"})
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["stage"], record["message"], record["report"]) == ("report", "results", "runs/demo/report.html")
    assert record["table"] == "all  50%\nlong  0%\n"
