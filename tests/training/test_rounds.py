from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from steptool.config import Config, PolicyConfig
from steptool.models.actor import Actor
from steptool.models.batch import collate
from steptool.models.load import load_model
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
    first = next(m["value"] for m in results[0].metrics if m["name"] == "ratio_deviation")
    assert first == pytest.approx(0, abs=1e-6)
    assert all(row["kl"] == 0 for row in results[0].advantages)
    assert max(abs(row["kl"]) for row in results[1].advantages) > 1e-3
    assert (model_dir / "model.safetensors").read_bytes() == base_bytes

    plain = AutoModelForCausalLM.from_pretrained(folders[3])
    adapted = PeftModel.from_pretrained(load_model(model_dir), folders[3] / "training/adapter")
    torch.testing.assert_close(log_probs(plain, rows), log_probs(adapted, rows), atol=1e-5, rtol=1e-5)
    assert (log_probs(plain, rows) - log_probs(load_model(model_dir), rows)).abs().max() > 1e-3
    # the adapter itself went on: its optimizer has seen the updates of all rounds
    moments = load_file(folders[3] / "training/optimizer.safetensors")
    assert {float(v) for k, v in moments.items() if k.startswith("step/")} == {18.0}
    assert all("lora" in k or "head." in k for k in moments)


def test_scores_of_a_later_round_are_those_of_its_folder(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, config: Config
) -> None:
    """Adapter off is the reference, adapter on is the policy that rollout loads from the merged weights."""
    rows = make.trajectories(5)
    train_round(model_dir, model_dir, rows, make.scores(rows), config=config, round_index=0, out_dir=tmp_path / "0")
    result = train_round(
        tmp_path / "0", model_dir, rows, make.scores(rows), config=config, round_index=1, out_dir=tmp_path / "1"
    )
    merged = log_probs(AutoModelForCausalLM.from_pretrained(tmp_path / "0"), rows)
    base = log_probs(load_model(model_dir), rows)
    lengths = np.cumsum([end - start for t in rows for start, end in t.spans])[:-1]
    expected = [float(part.sum()) for part in torch.tensor_split(merged - base, lengths.tolist())]
    assert [row["kl"] for row in result.advantages] == pytest.approx(expected, abs=1e-4)


def test_another_model_without_an_adapter_is_refused(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, config: Config
) -> None:
    rows = make.trajectories(4)
    full = config.model_copy(update={"policy": PolicyConfig()})
    train_round(model_dir, model_dir, rows, make.scores(rows), config=full, round_index=0, out_dir=tmp_path / "full")
    with pytest.raises(ValueError, match="has no folder 'training/adapter' and other weights than the reference"):
        train_round(
            tmp_path / "full", model_dir, rows, make.scores(rows), config=config, round_index=1, out_dir=tmp_path / "x"
        )
