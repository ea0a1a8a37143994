"""A PPO update in bfloat16 against the same in float32, on one thread: tokens per second and peak memory.

Prints `NAME tokens/s: OURS OTHER RATIO` and `NAME peak MB: OURS OTHER RATIO` for two models. Each side runs in a
process of its own, which scores the trajectories once and then makes one update; only that is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from steptool.config import Config
from steptool.models.actor import Actor
from steptool.models.optimizer import adamw
from steptool.models.value_head import ValueHead
from steptool.training.algorithms.base import Selection
from steptool.training.algorithms.step_ppo import StepPPO
from steptool.training.plan import PassLimit
from steptool.training.scores import score
from steptool.training.trainer import Settings, Trainer


@dataclass(frozen=True)
class Episode:
    """Random tokens with the spans of several steps: what the trainer looks at of a trajectory."""

    trajectory_id: str
    input_ids: np.ndarray
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class Size:
    """A model and the sequences that it learns from."""

    hidden: int
    layers: int
    vocabulary: int
    sequences: int
    length: int


SIZES = {
    "H=256": Size(hidden=256, layers=4, vocabulary=368, sequences=32, length=512),
    "vocabulary 152k": Size(hidden=896, layers=2, vocabulary=151_936, sequences=32, length=256),
}


def make_model(size: Size, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """A Qwen2.5-like model with random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=2,
        intermediate_size=size.hidden * 4,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(dtype)
    model = model.to_empty(device="cpu")
    model.init_weights()
    return model


def make_episodes(size: Size) -> list[Episode]:
    """A prompt of a quarter of the tokens, then steps of 24 action tokens and observations of 40."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(size.sequences):
        length = int(size.length * rng.uniform(0.7, 1.0))
        spans = [(start, start + 24) for start in range(size.length // 4, length - 24, 64)]
        episodes.append(Episode(str(number), rng.integers(0, size.vocabulary, length), spans))
    return episodes


def run_side(size: Size, dtype: torch.dtype) -> dict[str, float]:
    """Score, then one update; tokens per second of the update and the peak memory of the process."""
    torch.set_num_threads(1)
    episodes = make_episodes(size)
    actor = Actor(make_model(size, dtype), ValueHead(size.hidden), temperature=0.7)
    options = {"epochs": 1, "batch_size": size.sequences, "value_warmup_rounds": 0, "learning_rate": 1e-5}
    algorithm = StepPPO(Config.model_validate({"ppo": options}), 0)
    rewards = [np.linspace(0.0, 1.0, len(e.spans)) for e in episodes]
    selection = Selection(episodes, 0, rewards)  # type: ignore[arg-type]
    limit = PassLimit(sequences=8)
    reference = make_model(size, dtype)
    scores = score(actor, reference, episodes, limit)
    del reference
    algorithm.prepare(selection, scores, torch.device("cpu"))
    optimizer = adamw(actor.policy, 1e-5, actor.head, 1e-3)
    trainer = Trainer(actor, optimizer, algorithm, episodes, Settings(limit, max_grad_norm=1.0))
    steps = algorithm.steps(trainer.lengths)
    start = time.perf_counter()
    trainer.train(steps)
    seconds = time.perf_counter() - start
    return {"tokens/s": float(trainer.lengths.sum()) * len(steps) / seconds, "peak MB": peak_megabytes()}


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1024


def measure(name: str, dtype: str) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.update", "--side", dtype, "--size", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides of every size, or one side of one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["float32", "bfloat16"])
    parser.add_argument("--size", choices=list(SIZES))
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(run_side(SIZES[options.size], getattr(torch, options.side))))
        return
    for name in SIZES:
        ours, other = measure(name, "bfloat16"), measure(name, "float32")
        for figure in ours:
            ratio = ours[figure] / other[figure]
            print(f"update {name} {figure}: {ours[figure]:.0f} {other[figure]:.0f} {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
