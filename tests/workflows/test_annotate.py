"""Trajectories scored again at the command line, and a run that its rewards stop."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steptool.config import Config
from steptool.environments.desk.tasks import Expert, draw_query
from steptool.records import Cost, Query, StepReward, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.rewards.annotators import annotate, make_annotator
from tasks.episodes import audit
from tasks.runtime.artifacts import Parquet, Shard, write_costs
from workflows.annotate import annotate as annotate_workflow

ROOT = Path(__file__).parents[2]
PYFLYTE = str(Path(sys.executable).with_name("pyflyte"))


@pytest.fixture(scope="module")
def episodes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with queries, episodes of a hurried expert, and other rewards of them."""
    folder, rng = tmp_path_factory.mktemp("played"), random.Random(0)
    queries = [draw_query("train", "single", f"annotate/{n}") for n in range(12)]
    episodes = [Expert(q, rng, 0.4, 0.5).attempt() for q in queries]
    write_records(folder / "queries.parquet", queries, Query)
    write_records(folder / "trajectories.parquet", episodes, Trajectory)
    write_records(folder / "lcs.parquet", annotate(queries, episodes, make_annotator("lcs")), StepReward)
    return folder


def test_trajectories_are_scored_again_without_a_new_rollout(episodes_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("rewards: {annotator: rules}\n")
    inputs = [f"--{name}={episodes_folder / name}.parquet" for name in ("trajectories", "queries")]
    command = [
        PYFLYTE,
        "run",
        "workflows/annotate.py",
        "annotate",
        f"--config={config}",
        f"--output={tmp_path / 'out'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, *inputs, f"--compare={episodes_folder / 'lcs.parquet'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert "rules 5 scored" in process.stdout and "rules 5 and truth 1 agree on" in process.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("audit.html", "audit.json", "costs.parquet", "rewards.parquet")
    ]
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (figures["annotator"], figures["others"]) == ("rules 5", ["lcs 4", "truth 1"])
    rows = read_records(tmp_path / "out" / "rewards.parquet", StepReward)
    assert {r.annotator for r in rows} == {"rules"} and len(rows) == figures["steps"]
    assert [c.stage for c in read_records(tmp_path / "out" / "costs.parquet", Cost)] == ["annotate"]


def shard(folder: Path, name: str, file: Path) -> Shard:
    """What one task of a map hands on: a file, and what it cost."""
    folder.mkdir()
    shutil.copyfile(file, folder / name)
    write_costs(folder, Cost("annotate", 0))
    return Shard(str(folder))


def test_rewards_beyond_a_threshold_stop_the_run_before_training(episodes_folder: Path, tmp_path: Path) -> None:
    config = Config.model_validate({"rewards": {"annotator": "lcs", "audit": {"min_kappa": 0.3}}})
    with pytest.raises(Exception, match=r"round 1: the rewards by 'lcs 4' were refused, and training did not start"):
        audit(
            round_index=0,
            config=config,
            queries=Parquet(str(episodes_folder / "queries.parquet")),
            episode_shards=[
                shard(tmp_path / "played", "trajectories.parquet", episodes_folder / "trajectories.parquet")
            ],
            reward_shards=[shard(tmp_path / "scored", "rewards.parquet", episodes_folder / "lcs.parquet")],
        )


def test_a_judge_that_only_answers_500_fails_and_says_so(chat: Any, episodes_folder: Path, tmp_path: Path) -> None:
    server = chat.serve(lambda *_: chat.Answer(status=500))
    endpoint = {"base_url": server.url, "model": "j", "retries": 0}
    config = Config.model_validate({"rewards": {"annotator": "judge", "judge": {"endpoint": endpoint, "votes": 1}}})
    files = {name: Parquet(str(episodes_folder / f"{name}.parquet")) for name in ("queries", "trajectories")}
    with pytest.raises(Exception, match=r"annotate: the judge gave no vote: 12 × .*answered 500"):
        annotate_workflow(config=config, output=str(tmp_path / "out"), **files)
    assert not (tmp_path / "out").exists()


def test_starting_the_workflow_imports_nothing_heavy() -> None:
    program = "import sys, workflows.annotate; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
