import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from flytekit import current_context
from safetensors.torch import load_file

from steptool.artifacts import lineage
from steptool.config import Config, load_config
from steptool.models.load import load_model, load_tokenizer
from steptool.records import Advantage, Cost, Evaluation, Metric, StepReward, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from workflows.train import train


def kept_policies() -> set[Path]:
    """The models of rounds that lie in the folder in which Flyte runs stages locally."""
    return set(Path(current_context().working_directory).parent.rglob("policy/model.safetensors"))


@pytest.fixture(scope="module")
def run(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a whole run, made over the folder of a former one."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "demo"
    folder.mkdir()
    manifest = {"kind": "training", "files": ["config.yaml", "left over"], "complete": True}
    (folder / "published.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "left over").write_text("of a former run")
    before = kept_policies()
    evidence = train(config=small, output=str(folder))
    (policy,) = kept_policies() - before  # of the last round; those before it went when nothing read them any more
    assert policy.parents[2].name == "checkpoint-2"  # a local run places its rounds together
    assert str(evidence.report) == str(folder / "report.html")
    yield folder


def test_every_artifact_has_a_name_that_says_what_it_is(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {
        "config.yaml",
        "queries.parquet",
        "demonstrations.parquet",
        "lessons.parquet",
        "recorded_rewards.parquet",
        "quarantine.jsonl",
        *(f"{kind}_round_{r:02d}.parquet" for kind in ("trajectories", "rewards", "advantages") for r in (0, 1)),
        "evaluations.parquet",
        *(
            f"evaluation_trajectories_{model}_{decoding}.parquet"
            for model in ("base", "warm_start", "steptool")
            for decoding in ("greedy", "sampled")
        ),
        "evaluation_rewards_warm_start_greedy.parquet",
        "evaluation_rewards_steptool_greedy.parquet",
        "metrics.parquet",
        "published.json",
        "costs.parquet",
        "metrics.json",
        "report.html",
        "viewer.html",
        "warm_start",
        "model",
    }
    assert [p.name for p in run.parent.iterdir()] == ["demo"]  # nothing half made is left beside it


def test_the_configuration_is_kept(run: Path, small: Config) -> None:
    assert load_config(run / "config.yaml") == small


def test_each_round_rolls_out_the_current_policy_on_training_queries(run: Path, small: Config) -> None:
    train_ids = {q.query_id for q in read_queries(run / "queries.parquet", "train")}
    played_ids: list[str] = []
    for round in range(2):
        episodes = read_records(run / f"trajectories_round_{round:02d}.parquet", Trajectory)
        assert len({t.trajectory_id for t in episodes}) == small.rollout.episodes
        assert {(t.policy, t.round) for t in episodes} == {(f"round_{round:02d}", round)}
        assert {t.query_id for t in episodes} <= train_ids
        played_ids += [t.query_id for t in episodes]
    assert len(set(played_ids)) == 8  # ten episodes: all eight queries came before any came twice


def test_every_step_has_a_reward_and_an_advantage(run: Path) -> None:
    for round in range(2):
        episodes = read_records(run / f"trajectories_round_{round:02d}.parquet", Trajectory)
        steps = {(t.trajectory_id, n) for t in episodes for n in range(len(t.steps))}
        for name, cls in (("rewards", StepReward), ("advantages", Advantage)):
            rows = read_records(run / f"{name}_round_{round:02d}.parquet", cls)
            assert {(r.trajectory_id, r.step) for r in rows} == steps
            assert len(rows) == len(steps)


def test_all_models_are_measured_on_the_same_held_out_tasks(run: Path) -> None:
    held_out = {q.query_id for q in read_queries(run / "queries.parquet", "heldout")}
    rows = read_records(run / "evaluations.parquet", Evaluation)
    for model in ("base", "warm_start", "steptool"):
        for decoding in ("greedy", "sampled"):
            of_model = [r for r in rows if (r.model, r.decoding) == (model, decoding)]
            assert sorted(r.query_id for r in of_model) == sorted(held_out)
            played = read_records(run / f"evaluation_trajectories_{model}_{decoding}.parquet", Trajectory)
            assert {r.trajectory_id for r in of_model} == {t.trajectory_id for t in played}


def test_the_model_was_trained_and_tells_where_it_comes_from(run: Path) -> None:
    before, after = (load_file(run / name / "model.safetensors") for name in ("warm_start", "model"))
    assert any(not torch.equal(before[k], after[k]) for k in before)
    load_model(run / "model")
    load_tokenizer(run / "model")
    stages = [(e["stage"], e["round"]) for e in lineage.read(run / "model")]
    assert stages == [("base", -1), ("warm_start", -1), ("step_ppo", 0), ("step_ppo", 1)]
    for entry in lineage.read(run / "model"):
        assert all(digest == lineage.hash_file(run / name) for name, digest in entry["files"].items())
    card = (run / "model" / "README.md").read_text()
    assert "| step_ppo | 1 to 2 | 4 files, named in lineage.json |" in card


def test_figures_and_costs_cover_every_stage(run: Path) -> None:
    figures = json.loads((run / "metrics.json").read_text())
    assert set(figures["pass_rate"]) == {"base", "warm_start", "steptool"}
    assert set(figures["difference"]) >= {"mean", "low", "high"}
    stages = {"ingest", "prepare", "warm_start", "rollout", "annotate", "ppo", "evaluate", "report"}
    assert set(figures["seconds"]) == stages | {"total"}
    assert figures["peak_memory_mb"] > 100
    costs = read_records(run / "costs.parquet", Cost)
    assert [c.round for c in costs if c.stage == "rollout"] == [0, 0, 1, 1]
    assert all(c.tokens > 0 for c in costs if c.stage in ("rollout", "warm_start", "ppo"))
    learned = {(r.stage, r.round) for r in read_records(run / "metrics.parquet", Metric)}
    assert learned >= {("ingest", -1), ("warm_start", -1), ("ppo", 0), ("ppo", 1)}


def test_the_report_is_one_page(run: Path) -> None:
    html = (run / "report.html").read_text()
    links = [unquote(link) for link in re.findall(r'<a href="([^"#]+)"', html)]
    assert {"viewer.html", "config.yaml", "model/", "trajectories_round_01.parquet"} <= {*links}
    assert all((run / link).exists() for link in links)
    assert "<title>Held-out episodes" in (run / "viewer.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert "StepTool" in html


def test_a_folder_of_something_else_is_left_alone(small: Config, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    start = time.perf_counter()
    with pytest.raises(Exception, match="holds something else than a former run"):
        train(config=small, output=str(tmp_path))
    assert time.perf_counter() - start < 5  # before anything expensive
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
