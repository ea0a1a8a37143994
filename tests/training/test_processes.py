import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from steptool.training.rounds import train_round

WORKER = Path(__file__).parent / "worker.py"


@pytest.mark.parametrize("detach", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_give_the_result_of_one(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, detach: bool
) -> None:
    """13 trajectories in steps of 4 or 5 on 2 x 3 slots: some slots of some steps stay empty."""
    wanted = {"batch_size": 5, "micro_batch_size": 1, "detach_value": detach}
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"count": 13, **wanted}))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(WORKER, model_dir, tmp_path / "two", "-", settings),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = make.trajectories(13)
    train_round(
        model_dir,
        model_dir,
        rows,
        make.scores(rows),
        config=make.config(**wanted),
        round_index=0,
        out_dir=tmp_path / "one",
    )
    for file in ("model.safetensors", "training/value_head.safetensors"):
        one, both = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        start = load_file(model_dir / file) if file.startswith("model") else {n: torch.zeros(()) for n in one}
        for name in one:
            moved = (one[name] - start[name]).abs().max()
            assert moved > 0
            assert (one[name] - both[name]).abs().max() < 0.02 * moved, name
