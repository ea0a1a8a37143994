"""Rounds of training on a GPU, packed, in both precisions."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from steptool.config import PolicyConfig
from steptool.models.load import prepare_base
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
    start, plain, *others = (load_file(folder / "model.safetensors") for folder in (base, *outs))
    assert {w.dtype for w in plain.values()} == {getattr(torch, dtype)}
    for name in plain:
        moved = (plain[name].float() - start[name].float()).norm()
        for other in others:
            assert (plain[name].float() - other[name].float()).norm() <= 0.3 * moved + 1e-6, name


def test_an_interrupted_round_goes_on(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    run = {"trajectories": rows, "reward_rows": make.scores(rows), "config": make.config(), "round_index": 0}

    class StoppedError(Exception):
        pass

    def stop() -> None:
        raise StoppedError

    kept = {"checkpoints": tmp_path / "kept", "checkpoint_every": 2}
    with pytest.raises(StoppedError):
        train_round(model_dir, model_dir, **run, out_dir=tmp_path / "a", on_checkpoint=stop, **kept)
    train_round(model_dir, model_dir, **run, out_dir=tmp_path / "a", **kept)
    train_round(model_dir, model_dir, **run, out_dir=tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-3)
