"""PPO as a Flyte task of two processes: the result of one, and a quiet end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tasks.training import PpoOutputs

ROOT = Path(__file__).parents[2]
PROFILE = "stages: {ppo: {processes: 2}}\n"
RUN = """
import json, sys
from steptool.config import Config
from tasks.training import ppo

if __name__ == "__main__":
    inputs = json.loads(sys.argv[1])
    done = ppo(**{**inputs, "config": Config.model_validate(inputs["config"])})
    print("model:", done.model)
"""


@pytest.mark.parametrize("sharding", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_give_the_result_of_one(
    round_inputs: dict[str, Any], attempt: Callable[..., PpoOutputs], tmp_path: Path, sharding: str
) -> None:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "run.py").write_text(RUN)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "STEPTOOL_PROFILE": str(tmp_path / "profile.yaml"),
    }
    config = round_inputs["config"].model_dump(mode="json")
    config["ppo"]["sharding"] = sharding
    inputs_text = json.dumps({**round_inputs, "config": config})
    process = subprocess.run(
        [sys.executable, tmp_path / "run.py", inputs_text],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr[-3000:]
    assert process.stdout.count("ppo   ") == 1  # the first process alone speaks
    assert "terminate called" not in process.stderr and "Aborted" not in process.stderr
    two = Path(process.stdout.rpartition("model: ")[2].strip())
    one = Path(str(attempt(tmp_path / "kept").model))
    for file in ("model.safetensors", "training/value_head.safetensors"):
        actual, expected = load_file(two / file), load_file(one / file)
        start = load_file(Path(round_inputs["policy"]) / file) if file.startswith("model") else {}
        for name in actual:
            distance = (expected[name] - start.get(name, 0)).abs().max()
            assert distance > 0
            assert (actual[name] - expected[name]).abs().max() < 0.02 * distance, name
