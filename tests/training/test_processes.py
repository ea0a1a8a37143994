import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steptool.training.rounds import train_round

WORKER = Path(__file__).parent / "worker.py"
COUNT = 13


@pytest.mark.parametrize(
    ("settings", "queries"),
    [
        ({"detach_value": True}, COUNT),
        pytest.param({"detach_value": False}, COUNT, marks=pytest.mark.slow),
        pytest.param({"algorithm": "eto", "rollout": {"samples_per_query": 2}}, 3, marks=pytest.mark.slow),
        pytest.param(
            {
                "algorithm": "gigpo", "rollout": {"samples_per_query": 2}, "credit": {"whiten": False},
                "ratio": "step", "nll_coef": 0.1, "entropy_coef": 0.01,
            },
            3,
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_two_processes_give_the_result_of_one(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, settings: dict[str, Any], queries: int
) -> None:
    """13 trajectories in steps of 4 or 5 on 2 x 3 slots: some slots of some steps stay empty."""
    options = {"batch_size": 5, "micro_batch_size": 1, **settings}
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"count": COUNT, "queries": queries, **options}))
    process = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(WORKER, model_dir, tmp_path / "two", "-", file),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    rows = [replace(t, query_id=f"q{i % queries}") for i, t in enumerate(make.trajectories(COUNT))]
    train_round(
        model_dir,
        model_dir,
        rows,
        make.scores(rows),
        config=make.config(**options),
        round_index=0,
        out_dir=tmp_path / "one",
    )
    written = [
        name for name in ("model.safetensors", "training/value_head.safetensors") if (tmp_path / "one" / name).exists()
    ]
    assert len(written) == (1 if "algorithm" in settings else 2)
    for name in written:
        one, both = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        start = load_file(model_dir / name) if name.startswith("model") else {n: torch.zeros(()) for n in one}
        for weight in one:
            distance = (one[weight] - start[weight]).abs().max()
            assert distance > 0
            assert (one[weight] - both[weight]).abs().max() < 0.02 * distance, weight
