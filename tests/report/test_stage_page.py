import re
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation_rows import make_evaluation
from steptool.config import Config
from steptool.records import Advantage, Cost, Evaluation, Metric, StepReward
from steptool.records.tables import write_records
from steptool.report.stage_page import build_stage_page
from steptool.training.scores import Mismatch

COST = Cost("ppo", seconds=12.34, peak_memory_mb=512.0)


def text_of(html: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def lines_of(html: str) -> dict[str, str]:
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td class="prose">(.*?)</td></tr>', html, flags=re.S)
    return {name: " ".join(re.sub(r"<[^>]+>", " ", what).split()) for name, what in rows}


def metrics(folder: Path) -> Path:
    records = [
        Metric(stage, round, update, "loss", value)
        for stage, round, update, value in (
            ("warm_start", -1, 0, 9.0),
            ("ppo", 0, 0, 8.0),
            ("ppo", 1, 0, 0.75),
            ("ppo", 1, 1, 0.25),
            ("ppo", 1, -1, 4.0),
        )
    ]
    return write_records(folder / "metrics.parquet", records, Metric)


def costs(folder: Path) -> Path:
    records = [Cost("rollout", 1, 9.0, 99), Cost("ppo", 1, 1.0, 12345, counts={"requests": 7, "money": 0.5})]
    return write_records(folder / "costs.parquet", records, Cost)


def test_a_figure_that_is_no_number_is_a_gap_in_its_curve(tmp_path: Path) -> None:
    losses = (0.75, float("nan"), float("inf"), 0.25)
    records = [Metric("ppo", 1, update, "loss", value) for update, value in enumerate(losses)]
    file = write_records(tmp_path / "metrics.parquet", records, Metric)
    html = build_stage_page("ppo", {}, {"metrics": file}, COST)
    assert html.count('<path class="line c-one"') == 2  # one before the gap and one after it


def test_what_came_in_and_went_out_is_listed_in_a_few_words(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "deep").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"x" * 3_000_000)
    (model / "deep" / "config.json").write_bytes(b"x" * 10_000)
    html = build_stage_page(
        "ppo",
        {
            "round": 1,
            "config": Config(),
            "policy": model,
            "far": "s3://bucket/file",
            "shards": [0] * 10,
            "rows": {"a": 1},
        },
        {"metrics": metrics(tmp_path), "costs": costs(tmp_path)},
        COST,
    )
    lines = lines_of(html)
    assert lines["metrics"].startswith("metrics, 5 rows, ") and lines["metrics"].endswith(" kB")
    assert lines["policy"] == "folder of 2 files, 3.0 MB"
    assert (lines["round"], lines["far"], lines["rows.a"]) == ("1", "s3://bucket/file", "1")
    assert lines["shards"] == "and 2 more" and lines["shards[7]"] == "0" and "shards[8]" not in lines
    assert lines["config"].startswith("Config seed: 0 data: source: desk")
    assert "12.3 s, at most 512 MB of memory, 12,345 tokens, requests 7, money 0.5" in text_of(html)


@pytest.mark.parametrize("algorithm", ["rft", "eto"])
def test_the_stage_that_learns_draws_what_every_algorithm_reports(tmp_path: Path, algorithm: str) -> None:
    records = [Metric(algorithm, 0, update, "loss", value) for update, value in enumerate((0.75, 0.25))]
    file = write_records(tmp_path / "metrics.parquet", records, Metric)
    html = build_stage_page("ppo", {}, {"metrics": file}, COST)
    assert "loss, 1: 0.75" in html and "loss, 2: 0.25" in html


def test_the_last_round_of_the_stage_is_drawn(tmp_path: Path) -> None:
    html = build_stage_page("ppo", {}, {"metrics": metrics(tmp_path)}, COST)
    assert "loss, 1: 0.75" in html and "loss, 2: 0.25" in html
    assert "loss, 1: 8" not in html and "loss, 1: 9" not in html and "loss, 0: 4" not in html


MISMATCH = Mismatch(0.0125, 0.25, 0.5, 0.0375, 0.0625, 0.75, 0.5)


def test_a_round_shows_how_far_engine_and_training_are_apart(tmp_path: Path) -> None:
    file = write_records(tmp_path / "metrics.parquet", MISMATCH.metrics("ppo", 2), Metric)
    text = text_of(build_stage_page("ppo", {}, {"metrics": file}, COST))
    for title, value in (
        ("difference", "0.0125"),
        ("99% quantile", "0.25"),
        ("largest difference", "0.5"),
        ("KL, k1", "0.0375"),
        ("KL, k3", "0.0625"),
        ("effective sample", "75%"),
    ):
        assert f"Engine against training: {title} {value}" in text
    assert "Tokens beyond the importance cap 50%" in text


def test_rounds_placed_together_show_it_over_the_rounds(tmp_path: Path) -> None:
    later = replace(MISMATCH, k3=0.125)
    files = [
        write_records(tmp_path / f"metrics_{n}.parquet", mismatch.metrics("ppo", n), Metric)
        for n, mismatch in enumerate((MISMATCH, later))
    ]
    html = build_stage_page("rounds_together", {}, {"metrics": files}, COST)
    title = "Engine against training: KL, k3"
    assert f"{title}, 0: 0.0625" in html and f"{title}, 1: 0.125" in html
    assert "Engine against training: effective sample, 1: 75%" in html


def test_scores_verdicts_and_advantages_are_drawn(tmp_path: Path) -> None:
    scores = ((1.0, 0.5, None), (0.0, None, None), (None, None, 1.0))
    rewards = [StepReward("t", n, "rules", "2", "", *components) for n, components in enumerate(scores)]
    passed = [
        make_evaluation("q", p, model="base", decoding=d)
        for d, p in (("greedy", 1.0), ("greedy", 0.0), ("sampled", 0.0))
    ]
    steps = [
        Advantage(t, s, reward=r, kl=0.0, value=0.0, advantage=-r)
        for t, s, r in (("a", 0, 1.0), ("b", 0, 3.0), ("b", 1, 5.0))
    ]
    out = {
        "rewards": write_records(tmp_path / "rewards.parquet", rewards, StepReward),
        "rows": [write_records(tmp_path / "evaluations.parquet", passed, Evaluation)],
        "advantages": write_records(tmp_path / "advantages.parquet", steps, Advantage),
        "none": write_records(tmp_path / "none.parquet", [], StepReward),
    }
    html = build_stage_page("audit", {}, out, COST)
    assert ", succeeded: 50%" in html and ", contributes: 50%" in html and ", solved: 100%" in html
    assert "base, greedy: 50%" in html and "base, sampled: 0%" in html
    assert "reward, 0: 2" in html and "reward, 1: 5" in html and "advantage, 0: −2" in html
    assert html.count("Mean scores</b>") == 1


def test_names_and_values_are_escaped() -> None:
    html = build_stage_page("ingest", {"<b>": "<script>"}, {}, COST)
    assert "<script>" not in html and "&lt;script&gt;" in html and "<b>" not in html
