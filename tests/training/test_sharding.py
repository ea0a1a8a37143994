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
from transformers import AutoModelForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig, MixtralConfig, Qwen3Config

from steptool.models.adapter import WEIGHTS
from steptool.models.load import ModelError, load_model, load_tokenizer
from steptool.models.optimizer import join_halves
from steptool.models.sharding import check_parts
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
    save_gemma4(folder / "gemma4_model", model_dir)
    stages = ("parts", "buffers", "ppo", "tiled", "bfloat16", "lora", "sft", "sft_lora")
    for killed in ((*stages, "ppo_killed"), ("ppo_resumed", "sft_killed")):
        run = start(model_dir, folder, *killed)
        assert "SIGKILL" in run.stderr, run.stderr[-3000:]
    last = start(model_dir, folder, "sft_resumed")
    assert last.returncode == 0, last.stderr[-3000:]
    return folder


SIZES = {
    "vocab_size": 304, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip


def save_gemma4(folder: Path, model_dir: Path) -> None:
    """A Gemma 4, each layer of which has a factor that is no parameter."""
    sizes = {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    kinds = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(Gemma4TextConfig(**SIZES, **sizes, layer_types=kinds, sliding_window=16))
    for layer in model.model.layers:
        layer.layer_scalar.fill_(0.75)
    model.save_pretrained(folder)
    load_tokenizer(model_dir).save_pretrained(folder)


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


def test_buffers_that_belong_to_the_weights_are_read_and_written(two: Path, tmp_path: Path) -> None:
    """The worker compares them after reading, and one process writes the same folder."""
    play(two / "gemma4_model", tmp_path, "ddp")
    start, written = load_files(two / "gemma4_model"), load_files(two / "buffers")
    scalars = {name for name in start if name.endswith("layer_scalar")}
    assert len(scalars) == 2 and all(torch.equal(start[name], written[name]) for name in scalars)
    expected = load_files(tmp_path)
    assert written.keys() == expected.keys()
    for name in written.keys() - scalars:
        distance = (expected[name] - start[name]).abs().max()
        assert (written[name] - expected[name]).abs().max() <= 0.02 * distance, name


def test_weights_that_are_saved_under_other_names_are_refused(model_dir: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(tmp_path)
    load_tokenizer(model_dir).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"hold no .*experts.*set ppo\.sharding to ddp"):
        check_parts(tmp_path)
    check_parts(model_dir)


@pytest.mark.slow
def test_killed_rounds_with_adapters_end_with_the_same_bits(model_dir: Path, tmp_path: Path) -> None:
    """The second of two rounds is killed after a checkpoint, over a tied float32 and an untied bfloat16 base."""
    tied, untied = tmp_path / "tied" / "base", tmp_path / "untied" / "base"
    shutil.copytree(model_dir, tied)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(Qwen3Config(**SIZES)).bfloat16().save_pretrained(untied)
    load_tokenizer(model_dir).save_pretrained(untied)
    assert "lm_head.weight" in load_files(untied) and "lm_head.weight" not in load_files(tied)
    for base in (tied, untied):
        for stages, code in ((("base/whole", "base/killed"), "SIGKILL"), (("base/resumed",), "")):
            run = start(model_dir, base.parent, *stages)
            assert code in run.stderr if code else run.returncode == 0, run.stderr[-3000:]
        stopped, whole = (base.parent / name / "1" for name in ("stopped", "whole"))
        files = {file.relative_to(whole) for file in whole.rglob("*.safetensors")}
        assert {file.name for file in files} == {WEIGHTS, "optimizer.safetensors", "value_head.safetensors"}
        for file in files:
            left, right = load_file(stopped / file), load_file(whole / file)
            assert left.keys() == right.keys()
            assert all(torch.equal(tensor, right[name]) for name, tensor in left.items()), file
