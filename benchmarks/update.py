"""A PPO update in bfloat16 against the same in float32, on one thread: tokens per second and peak memory.

Prints `NAME tokens/s: OURS OTHER RATIO` and `NAME peak MB: OURS OTHER RATIO` for two models, and the same for compiled
layers (`ppo.compile`). For the large vocabulary a last line is against a float32 that makes new gradients of output
layer and embedding in every forward pass and leaves what it frees in the heap, as a trainer does that leaves both to
the libraries. OURS has weights and products in bfloat16. Its moments are float32, as they come, in the small model,
which is about speed; in the large vocabulary, which is about memory too, they are bfloat16 (`ppo.moments`). Each side
runs in a process of its own, which scores the trajectories and then makes updates; only these are timed, in seconds of
processor time, so that speeds hardly depend on what else runs on the machine.
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
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from steptool.config import Config, PolicyConfig
from steptool.models.actor import Actor, ValueHead
from steptool.models.adapter import add_adapter
from steptool.models.logprobs import SMALL_VOCABULARY
from steptool.models.optimizer import make_adamw
from steptool.training.algorithms.base import Selection
from steptool.training.algorithms.step_ppo import StepPPO
from steptool.training.processes import PassLimit
from steptool.training.scores import score
from steptool.training.trainer import Settings, Trainer


@dataclass(frozen=True)
class Episode:
    """Random tokens with the spans of several steps: what the trainer looks at of a trajectory."""

    trajectory_id: str
    input_ids: npt.NDArray[np.int64]
    spans: list[tuple[int, int]]

    @property
    def action_tokens(self) -> int:
        """Number of tokens inside the spans."""
        return sum(end - start for start, end in self.spans)

    @property
    def logprobs(self) -> npt.NDArray[np.float32]:
        """No engine has sampled the tokens: none."""
        return np.zeros(0, np.float32)


@dataclass(frozen=True)
class Size:
    """A Qwen2.5-like model of random weights, and the sequences that it learns from."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    sequences: int
    """Sequences of an update."""
    length: int
    tied: bool = True
    lora_rank: int = 0
    moments: Literal["float32", "bfloat16"] = "float32"
    """Precision of the moments of bfloat16 weights (`ppo.moments`)."""
    runs: int = 1
    """Runs of each side, in turn, whose medians are printed: other work on the machine sways a short run."""


SIZES = {
    "H=256": Size(256, 4, 4, 2, 1024, vocabulary=368, sequences=32, length=512, runs=5),
    "vocabulary 152k": Size(896, 2, 14, 2, 3584, vocabulary=151_936, sequences=32, length=256, moments="bfloat16"),
}


@dataclass(frozen=True)
class Side:
    """How an update is made."""

    dtype: torch.dtype
    in_place: bool = True
    """Whether gradients of output layer and embedding add up in place, and freed memory is given back."""
    compiled: bool = False
    """Whether the layers are compiled (`ppo.compile`); the seconds of compiling are not timed."""


OURS, COMPILED, OTHER, FORMER = "bfloat16", "bfloat16 compiled", "float32", "float32 by autograd"
SIDES = {
    OURS: Side(torch.bfloat16),
    COMPILED: Side(torch.bfloat16, compiled=True),
    OTHER: Side(torch.float32),
    FORMER: Side(torch.float32, in_place=False),
}


class AutogradActor(Actor):
    """Every gradient is made anew in every forward pass, and what a pass has freed stays in the heap."""

    def accumulate_gradients(self) -> None:
        pass

    def release_memory(self) -> None:
        pass


@dataclass(frozen=True)
class Speed:
    """What was measured of the updates."""

    tokens: float
    """Tokens per second, prompts and observations included."""
    scored: float
    """Tokens per second of scoring: forward passes of policy and reference."""
    seconds: float
    """Of one update."""
    action_share: float
    """Share of the tokens that are actions."""


def make_model(size: Size, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model with random weights, made on the device."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=32_768,
        tie_word_embeddings=size.tied,
    )
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def make_episodes(size: Size, shortest: float = 0.7) -> list[Episode]:
    """A prompt of a quarter of the tokens, then steps of 24 action tokens and observations of 40."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(size.sequences):
        length = int(size.length * rng.uniform(shortest, 1.0))
        spans = [(start, start + 24) for start in range(size.length // 4, length - 24, 64)]
        episodes.append(Episode(str(number), rng.integers(0, size.vocabulary, length), spans))
    return episodes


def make_actor(size: Size, dtype: torch.dtype, device: torch.device, kind: type[Actor] = Actor) -> Actor:
    """The policy, plain or with an adapter, and its value head."""
    model: nn.Module = make_model(size, dtype, device)
    if size.lora_rank:
        model = add_adapter(model, PolicyConfig(lora_rank=size.lora_rank), seed=0)
    return kind(model, ValueHead(size.hidden), temperature=0.7).to(device)


def time_updates(
    actor: Actor,
    size: Size,
    episodes: Sequence[Episode],
    limit: PassLimit,
    updates: int,
) -> Speed:
    """Score the episodes, then make updates on all of them; the first, which warms up, is not timed if there are more.

    A policy with an adapter is its own reference; another is scored twice, which costs the same. Seconds are those of
    the clock on a GPU, and of this process on a CPU.
    """
    device = next(actor.parameters()).device
    read_clock = time.process_time if device.type == "cpu" else time.perf_counter
    options = {"epochs": updates, "batch_size": len(episodes), "value_warmup_rounds": 0, "learning_rate": 1e-5}
    algorithm = StepPPO(Config.model_validate({"ppo": options}), 0)
    selection = Selection(episodes, 0, [np.linspace(0.0, 1.0, len(e.spans)) for e in episodes])  # type: ignore[arg-type]
    reference = None if size.lora_rank else actor
    if updates > 1:
        score(actor, reference, episodes, limit)  # compiles
    start = read_clock()
    scores = score(actor, reference, episodes, limit)
    scored = read_clock() - start
    algorithm.prepare(selection, scores, device)
    optimizer = make_adamw(actor.policy, 1e-5, actor.head, 1e-3, moments=size.moments)
    ends = []
    trainer = Trainer(
        actor,
        optimizer,
        algorithm,
        episodes,
        Settings(limit, max_grad_norm=1.0),
        on_step=lambda *_: ends.append(read_clock()),
    )
    start = read_clock()
    trainer.train(algorithm.steps(trainer.lengths))
    seconds = (ends[-1] - ends[0]) / (updates - 1) if updates > 1 else ends[0] - start
    tokens = float(trainer.lengths.sum())
    return Speed(tokens / seconds, 2 * tokens / scored, seconds, float(trainer.action_tokens.sum()) / tokens)


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1024


def run_side(size: Size, side: Side) -> dict[str, float]:
    """Two updates in one way, of which the second is timed."""
    torch.set_num_threads(1)
    actor = make_actor(size, side.dtype, torch.device("cpu"), Actor if side.in_place else AutogradActor)
    if side.compiled:
        actor.compile_layers()
    speed = time_updates(actor, size, make_episodes(size), PassLimit(sequences=8), updates=2)
    return {"tokens/s": speed.tokens, "peak MB": peak_megabytes()}


def measure_side(name: str, side: str) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.update", "--side", side, "--size", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def compare(label: str, ours: float, other: float) -> None:
    """Print one line of the result."""
    print(f"update {label}: {ours:.0f} {other:.0f} {ours / other:.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sides of every size or of one, or one side of one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--size", choices=list(SIZES))
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(run_side(SIZES[options.size], SIDES[options.side])))
        return
    for name in [options.size] if options.size else SIZES:
        sides = (OURS, COMPILED, OTHER)
        runs = [[measure_side(name, side) for side in sides] for _ in range(SIZES[name].runs)]
        ours, compiled, other = (
            {figure: median(run[figure] for run in side) for figure in side[0]} for side in zip(*runs, strict=True)
        )
        for figure in ours:
            compare(f"{name} {figure}", ours[figure], other[figure])
            compare(f"{name} compiled {figure}", compiled[figure], other[figure])
        if SIZES[name].vocabulary > SMALL_VOCABULARY:
            former = measure_side(name, FORMER)["peak MB"]
            compare(f"{name} peak MB against {FORMER}", ours["peak MB"], former)


if __name__ == "__main__":
    main()
