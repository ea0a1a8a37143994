import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from steptool.training.rounds import train_round
from steptool.training.scores import FILE, Scores
from steptool.training.trainer import CheckpointFolder, find_last_checkpoint, list_complete_checkpoints, pack, unpack

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
        actual, expected = load_file(out / file), load_file(tmp_path / "undisturbed" / file)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in actual), file
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


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def save_two(folder: Path) -> None:
    """Two checkpoints of a small model, after one step and after two."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    checkpoints = CheckpointFolder(folder, every=1, fingerprint="data")
    log = []
    for step in range(2):
        model(torch.ones(4)).sum().backward()
        optimizer.step()
        log.append({"loss": float(step)})
        checkpoints.save(model, optimizer, log)


def test_one_flipped_bit_of_a_checkpoint_brings_back_the_one_before(tmp_path: Path, capsys: Any) -> None:
    draw = random.Random(0)
    save_two(tmp_path / "whole")
    for number in range(150):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        file = draw.choice(sorted(path for path in (folder / "checkpoint-2").rglob("*") if path.is_file()))
        flip(file, draw.randrange(8 * file.stat().st_size))
        assert find_last_checkpoint(folder) == folder / "checkpoint-1", file
    assert capsys.readouterr().out.count("checkpoint-2 is damaged and is passed over") == 150
    model = torch.nn.Linear(4, 4)
    checkpoints = CheckpointFolder(folder, every=1, fingerprint="data")
    assert checkpoints.restore(model, torch.optim.Adam(model.parameters())) == [{"loss": 0.0}]


def test_one_flipped_bit_of_an_archive_changes_nothing_that_is_used(tmp_path: Path) -> None:
    draw = random.Random(1)
    save_two(tmp_path / "whole")
    archive = pack(tmp_path / "whole", tmp_path / "state.tar")
    content = archive.read_bytes()
    refusals = 0
    for number in range(150):
        archive.write_bytes(content)
        flip(archive, draw.randrange(8 * len(content)))
        folder = tmp_path / str(number)
        folder.mkdir()
        if not unpack(archive, folder):
            refusals += 1
            assert not any(folder.iterdir())
            continue
        for file in (tmp_path / "whole" / "checkpoint-2").rglob("*"):  # the bit was in what a tar file fills up with
            copy = folder / file.relative_to(tmp_path / "whole")
            assert not file.is_file() or copy.read_bytes() == file.read_bytes()
    assert refusals > 50


def test_damaged_scores_are_computed_anew(tmp_path: Path) -> None:
    draw = random.Random(2)
    array_N = np.linspace(-1, 0, 50, dtype=np.float32)
    Scores(array_N, array_N, array_N).save(tmp_path, "data")
    assert Scores.load(tmp_path, "data") is not None
    content = (tmp_path / FILE).read_bytes()
    for _ in range(150):
        (tmp_path / FILE).write_bytes(content)
        flip(tmp_path / FILE, draw.randrange(8 * len(content)))
        assert Scores.load(tmp_path, "data") is None


def test_a_checkpoint_is_complete_with_its_digests_only(tmp_path: Path) -> None:
    save_two(tmp_path)
    assert [folder.name for folder in list_complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    (tmp_path / "checkpoint-2" / "complete").write_bytes(b"")
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
