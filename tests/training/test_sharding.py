"""Models cut over two processes (FSDP2) against one process. Trainings of the processes: sharded_worker.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from steptool.models.adapter import WEIGHTS
from steptool.models.load import load_model
from steptool.models.optimizer import join_halves
from tests.training.sharded_worker import demonstrate, play

WORKER = Path(__file__).parent / "sharded_worker.py"


def start(model: Path, folder: Path, *stages: str) -> subprocess.CompletedProcess[str]:
    """Run stages of the worker, one after the other, in two processes."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, WORKER, model, folder, *stages], env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def two(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; a warm start and a round were killed after a checkpoint and started again."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(model_dir, folder / "bfloat16_model")
    load_model(model_dir).bfloat16().save_pretrained(folder / "bfloat16_model")
    stages = ("parts", "ppo", "tiled", "bfloat16", "lora", "sft", "sft_lora")
    for killed in ((*stages, "ppo_killed"), ("ppo_resumed", "sft_killed")):
        run = start(model_dir, folder, *killed)
        assert "SIGKILL" in run.stderr, run.stderr[-3000:]
    last = start(model_dir, folder, "sft_resumed")
    assert last.returncode == 0, last.stderr[-3000:]
    return folder


def load_files(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all files of a model folder."""
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def assert_close(one: Path, two: Path, start: dict[str, torch.Tensor]) -> None:
    """Every weight has moved, and the two files differ by a fiftieth of the largest move at most."""
    actual, expected = (load_file(file) if file.suffix else load_files(file) for file in (one, two))
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        distance = (tensor - start.get(name, torch.zeros(()))).abs().max()
        assert distance > 0, name
        assert (tensor - expected[name]).abs().max() < 0.02 * distance, name


@pytest.fixture(scope="module")
def weights(model_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(model_dir / "model.safetensors")


def test_two_rounds_of_ppo_are_those_of_one_process(
    model_dir: Path, two: Path, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    """The second round goes on from weights, value head and moments that the processes have written."""
    play(model_dir, tmp_path / "0", "ddp")
    play(two / "ppo" / "0", tmp_path / "1", "ddp", round_index=1, reference=model_dir)
    for round_index in ("0", "1"):
        for file in ("model.safetensors", "training/value_head.safetensors"):
            before = weights if file.startswith("model") else {}
            assert_close(tmp_path / round_index / file, two / "ppo" / round_index / file, before)
    moments = load_file(two / "ppo" / "1" / "training/optimizer.safetensors")
    own = load_file(tmp_path / "1" / "training/optimizer.safetensors")
    assert {name: tensor.numel() for name, tensor in moments.items()} == {n: t.numel() for n, t in own.items()}
    assert {float(t) for name, t in moments.items() if name.startswith("step/")} == {12.0}


def test_large_vocabularies_recomputed_layers_and_several_files_give_the_same(
    two: Path, model_dir: Path, tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process writes as many files as two do, and an index of the same weights."""
    monkeypatch.setattr("steptool.models.load.MAX_FILE", 50_000)
    play(model_dir, tmp_path, "ddp")
    assert_close(tmp_path, two / "tiled", weights)
    for folder in (two / "tiled", tmp_path):
        files = sorted(file.name for file in folder.glob("model*"))
        assert files == [*(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)), "model.safetensors.index.json"]
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == weights.keys()
    stored = load_model(two / "tiled").state_dict()
    assert all(torch.equal(stored[name], tensor) for name, tensor in load_files(two / "tiled").items())


def test_bfloat16_weights_are_the_upper_halves_of_float32_ones(two: Path, tmp_path: Path) -> None:
    """Both ways compute in bfloat16 and add up in float32; what is left is the rounding of gradients."""
    play(two / "bfloat16_model", tmp_path, "ddp")
    actual, expected, before = (full_weights(folder) for folder in (tmp_path, two / "bfloat16", two / "bfloat16_model"))
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        distance, apart = tensor - before[name], tensor - expected[name]
        assert apart.norm() < 0.2 * distance.norm(), name


def full_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The float32 weights of a bfloat16 model folder."""
    weights, state = load_file(folder / "model.safetensors"), folder / "training/optimizer.safetensors"
    low = load_file(state) if state.is_file() else {}
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    return {
        name: join_halves(tensor, low.get(f"low/policy.{name}", torch.zeros_like(tensor)).view(torch.int16))
        for name, tensor in weights.items()
    }


def test_the_folder_is_laid_out_as_transformers_does(model_dir: Path, two: Path, tmp_path: Path) -> None:
    play(model_dir, tmp_path, "ddp")
    names = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    folder = two / "ppo" / "0"
    assert {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} == names
    assert (folder / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.shape == load_model(folder).lm_head.weight.shape


def test_an_adapter_over_a_sharded_base_is_that_of_one_process(model_dir: Path, two: Path, tmp_path: Path) -> None:
    play(model_dir, tmp_path, "ddp", rank=4)
    assert_close(tmp_path / WEIGHTS, two / "lora" / WEIGHTS, {})


@pytest.mark.parametrize("rank", [0, 4])
def test_a_warm_start_is_that_of_one_process(
    model_dir: Path, two: Path, tmp_path: Path, weights: dict[str, torch.Tensor], rank: int
) -> None:
    demonstrate(model_dir, tmp_path, "ddp", rank)
    trained = weights if rank == 0 else {name: tensor for name, tensor in weights.items() if "proj" in name}
    actual = load_file(tmp_path / "model.safetensors")
    expected = load_file(two / ("sft_lora" if rank else "sft") / "model.safetensors")
    for name, before in trained.items():
        distance = (actual[name] - before).abs().max()
        assert distance > 0, name
        assert (actual[name] - expected[name]).abs().max() < 0.02 * distance, name


def test_a_killed_warm_start_and_a_killed_round_end_with_the_same_weights(two: Path) -> None:
    for stopped, whole in (("sft_resumed", "sft"), ("ppo_resumed", "ppo/0")):
        left, right = (load_file(two / folder / "model.safetensors") for folder in (stopped, whole))
        assert left.keys() == right.keys()
        assert all(torch.equal(tensor, right[name]) for name, tensor in left.items()), stopped
    for stage in ("sft", "ppo"):
        left_names = sorted(path.name for path in (two / "checkpoints" / stage).glob("checkpoint-*"))
        assert left_names == ["checkpoint-4", "checkpoint-6"]
