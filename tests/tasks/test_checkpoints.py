"""PPO in a task whose pod is lost: the next attempt goes on from what Flyte kept and ends with the same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flytekit.bin.entrypoint import setup_execution
from safetensors.torch import load_file

from steptool.training.trainer import unpack
from tasks.runtime.artifacts import Checkpoints
from tasks.training import PpoOutputs

LEFT = "state.tar"
POD = """
import json, sys
from flytekit.bin.entrypoint import setup_execution
from steptool.config import Config
from tasks.runtime.artifacts import Model, Parquet
from tasks.training import ppo

inputs_text, raw, dest = sys.argv[1:]
inputs = json.loads(inputs_text)
for name, kind in dict(policy=Model, reference=Model, trajectories=Parquet, rewards=Parquet, costs=Parquet).items():
    inputs[name] = kind(inputs[name])
with setup_execution(raw, checkpoint_path=dest):
    ppo.execute(**{**inputs, "config": Config.model_validate(inputs["config"])})
"""


@pytest.fixture(scope="module")
def undisturbed(attempt: Callable[..., PpoOutputs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(str(attempt(tmp_path_factory.mktemp("kept")).model))


def whole(packed: Path) -> bool:
    """Whether the mark, which comes last, is there."""
    try:
        with tarfile.open(packed) as tar:
            return tar.getnames()[-1].endswith("/complete")
    except (FileNotFoundError, tarfile.ReadError):
        return False


@pytest.fixture(scope="module")
def killed_attempt(round_inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Flyte holds of an attempt that was killed after its first checkpoint."""
    dest, raw = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("raw")
    inputs_text = json.dumps({**round_inputs, "config": round_inputs["config"].model_dump(mode="json")})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pod = subprocess.Popen([sys.executable, "-c", POD, inputs_text, raw, dest], env=environment)
    deadline = time.monotonic() + 120
    while not whole(dest / LEFT):
        assert pod.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    pod.send_signal(signal.SIGKILL)
    assert pod.wait() == -signal.SIGKILL
    return dest


def same(one: Path, other: Path) -> bool:
    files = ("model.safetensors", "training/value_head.safetensors", "training/optimizer.safetensors")
    pairs = [(load_file(one / file), load_file(other / file)) for file in files]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def test_a_killed_attempt_goes_on_to_the_same_weights(
    attempt: Callable[..., PpoOutputs], killed_attempt: Path, undisturbed: Path, tmp_path: Path, capfd: Any
) -> None:
    outputs = attempt(tmp_path, killed_attempt)
    assert "ppo         going on from the checkpoint of an earlier attempt" in capfd.readouterr().out
    assert same(Path(str(outputs.model)), undisturbed)


def open_checkpoints(dest: Path, source: Path) -> list[str]:
    """What an attempt starts from, with what an earlier one left in `source`."""
    with setup_execution(f"{dest}-raw", checkpoint_path=str(dest), prev_checkpoint=str(source)):
        return sorted(path.name for path in Checkpoints("ppo").folder.iterdir())


def test_what_was_restored_is_kept_for_the_attempt_after_the_next(killed_attempt: Path, tmp_path: Path) -> None:
    """An attempt that dies before its own first checkpoint: Flyte offers the next one only what that one has stored."""
    restored = open_checkpoints(tmp_path / "second", killed_attempt)
    assert restored[0].startswith("checkpoint-") and restored[-1] == "scores.safetensors"
    assert open_checkpoints(tmp_path / "third", tmp_path / "second") == restored


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_attempt_starts_over_where_nothing_whole_was_left(
    killed_attempt: Path, tmp_path: Path, share: float
) -> None:
    whole = (killed_attempt / LEFT).read_bytes()
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / LEFT).write_bytes(whole[: int(len(whole) * share)])
    assert open_checkpoints(tmp_path / "kept", tmp_path / "left") == []
    assert open_checkpoints(tmp_path / "kept", tmp_path / "died before it wrote anything") == []


def test_a_checkpoint_counts_only_with_its_last_byte(killed_attempt: Path, tmp_path: Path) -> None:
    with tarfile.open(killed_attempt / LEFT) as tar:
        names = tar.getnames()
        marked = tar.getmember(names[-1])
    assert names[0] == "scores.safetensors" and names[-1].endswith("/complete")
    folder, cut = tmp_path / "folder", tmp_path / LEFT
    folder.mkdir()
    shutil.copyfile(killed_attempt / LEFT, cut)
    assert unpack(cut, folder) and any(folder.iterdir())
    shutil.rmtree(folder)
    folder.mkdir()
    cut.write_bytes(cut.read_bytes()[: marked.offset])  # cut between two members: no reader sees that it is short
    assert not unpack(cut, folder) and not any(folder.iterdir())
