"""Trainings of sharded models in one of two processes: python sharded_worker.py MODEL FOLDER STAGE...

Every stage writes into a folder of its name below FOLDER.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import distributed

from steptool.config import PolicyConfig, WarmStartConfig
from steptool.models import logprobs, sharding
from steptool.models.load import load_model
from steptool.models.optimizer import get_local_part
from steptool.models.sharding import load_sharded_actor
from steptool.training.rounds import train_round
from steptool.training.warm_start import warm_start
from tests.training.conftest import config, scores, trajectories

PPO = {"batch_size": 5, "micro_batch_size": 1, "detach_value": False}
"""13 trajectories in steps of 4 or 5 on two processes: in some steps a process lacks a pass."""


def play(
    model: Path,
    out: Path,
    sharding: str,
    *,
    rank: int = 0,
    round_index: int = 0,
    recompute: bool = False,
    **options: Any,
) -> None:
    """One round of StepPPO."""
    rows = trajectories(13)
    settings = config(**PPO, sharding=sharding, gradient_checkpointing=recompute).model_copy(
        update={"policy": PolicyConfig(lora_rank=rank)}
    )
    train_round(
        model, options.pop("reference", model), rows, scores(rows),
        config=settings, round_index=round_index, out_dir=out, checkpoint_every=2, **options,
    )  # fmt: skip


def demonstrate(model: Path, out: Path, sharding: str, rank: int = 0, **options: Any) -> None:
    """A warm start of six steps."""
    steps = WarmStartConfig(steps=6, batch_size=5, learning_rate=1e-3)
    warm_start(
        model, trajectories(13), steps, PolicyConfig(lora_rank=rank), 0, out,
        sharding=sharding, checkpoint_every=2, **options,
    )  # fmt: skip


def check_parts(model: Path) -> None:
    """Each process holds about half of the numbers, and together they hold those of the folder."""
    actor, whole = load_sharded_actor(model, 2, trained=True), load_model(model)
    own = sum(get_local_part(p).numel() for p in actor.parameters())
    assert own < 0.52 * sum(p.numel() for p in whole.parameters())
    for name, parameter in actor.policy.named_parameters():
        assert torch.equal(parameter.full_tensor(), whole.get_parameter(name)), name
    for name, buffer in actor.policy.named_buffers():
        assert torch.equal(buffer, whole.get_buffer(name)), name


def adapt_twice(model: Path, out: Path, checkpoints: Path | None = None, *, killed: bool = False) -> None:
    """Two rounds with an adapter. The second one keeps checkpoints, and is killed after the first of them if wanted."""
    if not (out / "0").is_dir():
        play(model, out / "0", "fsdp", rank=4)
    options: dict[str, Any] = {"checkpoints": checkpoints} if checkpoints else {}
    if killed:
        options["on_checkpoint"] = kill_this_process
    play(out / "0", out / "1", "fsdp", rank=4, round_index=1, reference=model, **options)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(stage: str, model: Path, folder: Path) -> None:
    out, checkpoints = folder / stage, folder / "checkpoints"
    kind, _, part = stage.partition("/")
    if part:  # adapters over a model that lies in the folder
        adapt_twice(
            folder / kind, folder / ("whole" if part == "whole" else "stopped"),
            None if part == "whole" else checkpoints / kind, killed=part == "killed",
        )  # fmt: skip
    elif stage == "parts":
        check_parts(model)
    elif stage == "buffers":
        check_parts(folder / "gemma4_model")
        play(folder / "gemma4_model", out, "fsdp")
    elif stage == "ppo":
        play(model, out / "0", "fsdp")
        play(out / "0", out / "1", "fsdp", round_index=1, reference=model)
    elif stage == "tiled":
        logprobs.SMALL_VOCABULARY, sharding.MAX_FILE = 10, 50_000
        play(model, out, "fsdp", recompute=True)
        logprobs.SMALL_VOCABULARY, sharding.MAX_FILE = 16384, 5 << 30
    elif stage == "bfloat16":
        play(folder / "bfloat16_model", out, "fsdp")
    elif stage == "lora":
        play(model, out, "fsdp", rank=4)
    elif stage == "sft":
        demonstrate(model, out, "fsdp")
    elif stage == "sft_lora":
        demonstrate(model, out, "fsdp", rank=4)
    elif stage == "sft_killed":
        killed = folder / "sft_resumed"
        demonstrate(model, killed, "fsdp", checkpoints=checkpoints / "sft", on_checkpoint=kill_this_process)
    elif stage == "sft_resumed":
        demonstrate(model, out, "fsdp", checkpoints=checkpoints / "sft")
    elif stage == "ppo_killed":
        killed = folder / "ppo_resumed"
        play(model, killed, "fsdp", checkpoints=checkpoints / "ppo", on_checkpoint=kill_this_process)
    elif stage == "ppo_resumed":
        play(model, out, "fsdp", checkpoints=checkpoints / "ppo")


def main() -> None:
    model, folder, *stages = sys.argv[1:]
    for stage in stages:
        run(stage, Path(model), Path(folder))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
