from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from steptool.config import Config, PolicyConfig
from steptool.models.actor import Actor, collate
from steptool.models.adapter import load_joined, locate, write_whole_model
from steptool.models.load import load_model, prepare_base
from steptool.training.rounds import train_round


@pytest.fixture
def config(make: SimpleNamespace) -> Config:
    return make.config(learning_rate=1e-2, epochs=3).model_copy(update={"policy": PolicyConfig(lora_rank=4)})


def log_probs(model: torch.nn.Module, rows: list) -> torch.Tensor:
    with torch.no_grad():
        return Actor(model)(collate(rows)).log_probs_N


def test_three_rounds_with_an_adapter(model_dir: Path, tmp_path: Path, make: SimpleNamespace, config: Config) -> None:
    rows = make.trajectories(8)
    folders = [model_dir, *(tmp_path / str(r) for r in range(3))]
    base_bytes = (model_dir / "model.safetensors").read_bytes()
    results = [
        train_round(
            folders[r], model_dir, rows, make.scores(rows), config=config, round_index=r, out_dir=folders[r + 1]
        )
        for r in range(3)
    ]
    first = next(m.value for m in results[0].metrics if m.name == "ratio_deviation")
    assert first == pytest.approx(0, abs=1e-6)
    assert all(row.kl == 0 for row in results[0].advantages)
    assert max(abs(row.kl) for row in results[1].advantages) > 1e-3
    assert (model_dir / "model.safetensors").read_bytes() == base_bytes

    write_whole_model(folders[3], model_dir, tmp_path / "whole")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    adapted = PeftModel.from_pretrained(load_model(model_dir), folders[3])
    torch.testing.assert_close(log_probs(plain, rows), log_probs(adapted, rows), atol=1e-5, rtol=1e-5)
    assert (log_probs(plain, rows) - log_probs(load_model(model_dir), rows)).abs().max() > 1e-3
    # the adapter itself went on: its optimizer has seen the updates of all rounds
    moments = load_file(folders[3] / "training/optimizer.safetensors")
    assert {float(v) for k, v in moments.items() if k.startswith("step/")} == {18.0}
    assert all("lora" in k or "head." in k for k in moments)


def test_scores_of_a_later_round_are_those_of_its_folder(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, config: Config
) -> None:
    """Adapter off is the reference, adapter on is the policy that a rollout loads."""
    rows = make.trajectories(5)
    train_round(model_dir, model_dir, rows, make.scores(rows), config=config, round_index=0, out_dir=tmp_path / "0")
    result = train_round(
        tmp_path / "0", model_dir, rows, make.scores(rows), config=config, round_index=1, out_dir=tmp_path / "1"
    )
    joined = log_probs(load_joined(locate(tmp_path / "0", model_dir)), rows)
    base = log_probs(load_model(model_dir), rows)
    lengths = np.cumsum([end - start for t in rows for start, end in t.spans])[:-1]
    expected = [float(part.sum()) for part in torch.tensor_split(joined - base, lengths.tolist())]
    assert [row.kl for row in result.advantages] == pytest.approx(expected, abs=1e-4)


def test_another_model_without_an_adapter_is_refused(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, config: Config
) -> None:
    rows = make.trajectories(4)
    full = config.model_copy(update={"policy": PolicyConfig()})
    train_round(model_dir, model_dir, rows, make.scores(rows), config=full, round_index=0, out_dir=tmp_path / "full")
    with pytest.raises(ValueError, match=r"has no adapter_config\.json and other weights than the reference"):
        train_round(
            tmp_path / "full", model_dir, rows, make.scores(rows), config=config, round_index=1, out_dir=tmp_path / "x"
        )


@pytest.fixture
def half_dir(model_dir: Path, tmp_path: Path) -> Path:
    """The model of `model_dir` in bfloat16."""
    return prepare_base(PolicyConfig(base=str(model_dir), dtype="bfloat16"), [], 0, tmp_path / "half")


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_bfloat16_folder_comes_out_in_bfloat16(
    half_dir: Path, tmp_path: Path, make: SimpleNamespace, lora_rank: int
) -> None:
    rows = make.trajectories(8)
    config = make.config(learning_rate=1e-3).model_copy(update={"policy": PolicyConfig(lora_rank=lora_rank)})
    folders = [half_dir, tmp_path / "0", tmp_path / "1"]
    for r in range(2):
        result = train_round(
            folders[r], half_dir, rows, make.scores(rows), config=config, round_index=r, out_dir=folders[r + 1]
        )
    write_whole_model(folders[2], half_dir, tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    start = load_file(half_dir / "model.safetensors")
    assert any(not torch.equal(weights[name], start[name]) for name in weights)
    state = load_file(folders[2] / "training/optimizer.safetensors")
    moments = {v.dtype for k, v in state.items() if k.startswith("exp_avg")}
    assert moments == {torch.bfloat16 if lora_rank else torch.float32}
    assert any(k.startswith("low/policy.") for k in state) is (lora_rank == 0)
    heads = load_file(folders[2] / "training/value_head.safetensors")
    assert {w.dtype for w in heads.values()} == {torch.float32}
    if lora_rank:
        adapter = load_file(folders[2] / "adapter_model.safetensors")
        assert {w.dtype for w in adapter.values()} == {torch.float32}
    deviations = [m.value for m in result.metrics if m.name == "ratio_deviation"]
    assert deviations[0] < 2**-5  # passes of another cut round differently


def test_small_updates_of_bfloat16_add_up_from_round_to_round(
    half_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    """Updates far below the resolution of bfloat16 move the float32 weights that the optimizer's state carries on."""
    rows = make.trajectories(4)
    config = make.config(learning_rate=1e-7, epochs=1)
    folders = [half_dir, tmp_path / "0", tmp_path / "1"]
    for r in range(2):
        train_round(folders[r], half_dir, rows, make.scores(rows), config=config, round_index=r, out_dir=folders[r + 1])
    low = [load_file(f / "training/optimizer.safetensors") for f in folders[1:]]
    name = next(k for k in low[0] if k.startswith("low/policy.") and "down_proj" in k)
    distance = [state[name].abs().float().mean() for state in low]
    assert distance[1] > 1.3 * distance[0] > 0


def test_tokens_per_pass_and_checkpointing_change_no_weights(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows, folders = make.trajectories(9), []
    for options in ({}, {"tokens_per_pass": 40}, {"gradient_checkpointing": True}):
        folders.append(tmp_path / str(len(folders)))
        config = make.config(batch_size=5, **options)
        train_round(model_dir, model_dir, rows, make.scores(rows), config=config, round_index=0, out_dir=folders[-1])
    start, plain, *others = (load_file(f / "model.safetensors") for f in (model_dir, *folders))
    for other in others:
        for name in plain:
            distance = (plain[name] - start[name]).abs().max()
            assert (plain[name] - other[name]).abs().max() < 0.02 * distance
