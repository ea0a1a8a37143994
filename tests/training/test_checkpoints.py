import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from steptool.training.rounds import train_round

WORKER = Path(__file__).parent / "worker.py"
SETTINGS = {"count": 10, "epochs": 30, "batch_size": 5, "micro_batch_size": 3}


def start(model: Path, out: Path, checkpoints: Path, settings: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, WORKER, model, out, checkpoints, settings], env=environment)


def kill_after(process: subprocess.Popen[bytes], mark: Path) -> None:
    deadline = time.monotonic() + 60
    while not mark.exists():
        assert process.poll() is None, f"the worker ended with {process.returncode} before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_round_goes_on_to_the_same_weights(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "killed"
    kill_after(start(model_dir, out, checkpoints, settings), checkpoints / "checkpoint-5" / "complete")
    assert not (out / "model.safetensors").exists()
    reached = max(int(p.name.split("-")[1]) for p in checkpoints.glob("checkpoint-*"))
    assert 5 <= reached < 60
    scores = (checkpoints / "scores.safetensors").stat().st_mtime_ns

    rows = make.trajectories(10)
    run = {
        "trajectories": rows,
        "rewards": make.scores(rows),
        "config": make.config(**{k: v for k, v in SETTINGS.items() if k != "count"}),
        "round_index": 0,
    }
    resumed = train_round(model_dir, model_dir, **run, out_dir=out, checkpoints=checkpoints, checkpoint_every=20)
    undisturbed = train_round(model_dir, model_dir, **run, out_dir=tmp_path / "undisturbed")
    assert (checkpoints / "scores.safetensors").stat().st_mtime_ns == scores
    for file in ("model.safetensors", "training/value_head.safetensors", "training/optimizer.safetensors"):
        ours, theirs = load_file(out / file), load_file(tmp_path / "undisturbed" / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    assert resumed == undisturbed

    # the same call once more finds everything done and changes nothing
    assert train_round(model_dir, model_dir, **run, out_dir=out, checkpoints=checkpoints) == undisturbed


def test_an_incomplete_checkpoint_is_passed_over(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    run = {"trajectories": rows, "rewards": make.scores(rows), "config": make.config(), "round_index": 0}
    once = train_round(
        model_dir, model_dir, **run, out_dir=tmp_path / "a", checkpoints=tmp_path / "c", checkpoint_every=3
    )
    (tmp_path / "c" / "checkpoint-4").mkdir(exist_ok=True)
    (tmp_path / "c" / "checkpoint-4" / "complete").unlink(missing_ok=True)
    (tmp_path / "c" / "checkpoint-4" / "progress.json").write_text("{")
    again = train_round(
        model_dir, model_dir, **run, out_dir=tmp_path / "b", checkpoints=tmp_path / "c", checkpoint_every=3
    )
    assert once == again


def test_checkpoints_of_other_rewards_are_refused(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(4)
    run = {"trajectories": rows, "config": make.config(), "round_index": 0, "out_dir": tmp_path / "a"}
    train_round(model_dir, model_dir, rewards=make.scores(rows), checkpoints=tmp_path / "c", **run)
    with pytest.raises(ValueError, match="belong to other trajectories or rewards"):
        train_round(model_dir, model_dir, rewards=make.scores(rows, seed=1), checkpoints=tmp_path / "c", **run)
