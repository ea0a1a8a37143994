"""Rounds of training on a GPU, packed, in both precisions."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from steptool.config import PolicyConfig
from steptool.models.adapter import WEIGHTS
from steptool.models.load import prepare_base
from steptool.models.optimizer import FILE, join_halves
from steptool.training.rounds import train_round

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_round_learns_and_is_the_same_however_it_is_cut(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, dtype: str, lora_rank: int
) -> None:
    base = prepare_base(PolicyConfig.model_validate({"base": str(model_dir), "dtype": dtype}), [], 0, tmp_path / "base")
    rows, outs = make.trajectories(9), []
    for options in ({}, {"tokens_per_pass": 64}, {"gradient_checkpointing": True}):
        config = make.config(batch_size=5, **options).model_copy(update={"policy": PolicyConfig(lora_rank=lora_rank)})
        outs.append(tmp_path / str(len(outs)))
        result = train_round(base, base, rows, make.scores(rows), config=config, round_index=0, out_dir=outs[-1])
        deviation = next(m.value for m in result.metrics if m.name == "ratio_deviation")
        assert deviation < (1e-3 if dtype == "float32" else 2**-4)
    file = WEIGHTS if lora_rank else "model.safetensors"
    saved = {w.dtype for w in load_file(outs[0] / file).values()}
    assert saved == {torch.float32 if lora_rank else getattr(torch, dtype)}
    start = {} if lora_rank else full_weights(base, file)
    plain, *others = (full_weights(folder, file) for folder in outs)
    for name in (name for name in plain if "lora_A" not in name):  # these start at random, and the others of LoRA at 0
        distance = (plain[name] - start.get(name, 0.0)).norm()
        for other in others:
            assert (plain[name] - other[name]).norm() <= 0.3 * distance + 1e-6, name


def full_weights(folder: Path, file: str) -> dict[str, torch.Tensor]:
    """The float32 weights behind a folder's, with the lower halves that the optimizer's state keeps."""
    weights = load_file(folder / file)
    state = load_file(folder / FILE) if (folder / FILE).is_file() else {}
    low = {key.removeprefix("low/policy."): value for key, value in state.items() if key.startswith("low/")}
    return {name: join_halves(w, low[name]) if name in low else w.float() for name, w in weights.items()}


def test_an_interrupted_round_goes_on(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    run = {"trajectories": rows, "rewards": make.scores(rows), "config": make.config(), "round_index": 0}

    class StoppedError(Exception):
        pass

    def stop() -> None:
        raise StoppedError

    settings = {"checkpoints": tmp_path / "kept", "checkpoint_every": 2}
    with pytest.raises(StoppedError):
        train_round(model_dir, model_dir, **run, out_dir=tmp_path / "a", on_checkpoint=stop, **settings)
    train_round(model_dir, model_dir, **run, out_dir=tmp_path / "a", **settings)
    train_round(model_dir, model_dir, **run, out_dir=tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-3)
